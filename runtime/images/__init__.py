"""Images: what a name stands for, kept once for all drivers, and unpacked by each driver on first use.

    reference        a name with its tag
    document         the JSON documents that an image consists of, OCI's and docker's
    changes          --change CMD …, as data
    platforms        which of an index's manifests is for this machine
    blobs  index     content by digest, and which of it are images with which names
    incoming         blobs that are being received, and can be gone on with
    image  store     publish, get, list, tag, remove
    rootfs           an image of a root file system's archive
    load  save       images from and to archives and layouts (dockerarchive, layout, members)
    layer            a layer's archive between a file, a blob and a tree
    unpack  admit    layers into a driver's snapshots, named by chain id

Imports drivers (the Snapshotter and archives); knows nothing of containers.
"""
