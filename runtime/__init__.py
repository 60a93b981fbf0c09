"""A container runtime on a storage driver of choice.

    images/      references, documents, the content store, archives in and out, unpacking
    registry/    pull, push, login, mirrors
    oci/         a bundle in, a process out
    engine/      what there is of images, containers and networks, and what can be done with it
    client/      a user's terminal, signals and streams <-> a task's frames
    cli/         the command line: words in, text and exit codes out
    errors       what can go wrong, as a tree            events      what happens, as values

Arrows (A <- B: B may import A): images <- registry; oci, images, registry <- engine <- client <- cli. All may import
errors and drivers, and events but for oci.
"""
