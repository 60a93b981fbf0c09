"""Images: what a name stands for, kept once for all drivers, and unpacked by each driver on first use.

    reference        a name with its tag
    document         the JSON documents of the OCI image specification that an image consists of
    changes          --change CMD …, as data
    blobs  index     content by digest, and which of it are images with which names
    store            import, get, list, remove
    layer            a layer's archive between a file, a blob and a tree
    unpack           layers into a driver's snapshots, named by chain id

Imports drivers (the Snapshotter and archives); knows nothing of containers.
"""
