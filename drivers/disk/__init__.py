"""What drivers have in common on a disk, and in the files on it.

    trees       walk, measure and delete a tree, however deep it is
    copytree    a faithful copy of a tree, or of one file
    durable     what a power cut leaves whole
    reserve     room that is given up when the disk is full
    quota       project quotas: how much may be written below a directory
    loop        a file as a block device
    locks       lock files that are waited for with a bound
    ownership   whether a path is ours to use
    sizes       "10G" as a number of bytes
    programs    where mkfs, zfs and the like are installed

Stands on the interface. Each file is one idea, and few of them know another.
"""
