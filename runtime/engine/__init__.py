"""What there is of images, containers and networks, and what can be done with it. No terminal, no command line: values
in, values out, a RuntimeFault for what cannot be; events are told to a listener that is handed in.

    installation   the one owner of paths, image store, storage drivers, containers and networks
    paths          where everything of an installation lies
    records        JSON on disk, replaced whole          state   what a container is doing, and the record of it
    facts          what this machine offers, for `info`
    spawn          a task, seen by its starter; frames, line, watch and waiting are the talk with one
    stdio          the ends of a process's standard streams

The rooms, each with a map in its __init__:

    containers/    what they are made from, how they are kept, and the verbs
    images/        the verbs on images that have to do with more than the image store
    networks/      networks by name, their drivers
    storage/       the drivers that are open, what takes how much room, what killed processes left
    task/          the process that keeps a running container, and what is run in it

A verb is a module of one room and a module of cli/. A driver of networks is a module and a line of networks/table.py.
"""
