"""The verbs on images that have to do with more than the image store: containers that use them, drivers that have
unpacked them, registries.

    transfer       pull and push
    remove         with what the drivers have unpacked of it
    prune          what no container is made of
    inspect        all that is known of one

What is about the store alone (tag, import, load, save, history) is in runtime/images.
"""
