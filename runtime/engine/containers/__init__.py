"""Containers: what they are, and what can be done with them.

What there is, which a task needs too:

    request        what one is asked to be: values, and their rules
    names          names and ids                        accounts   users and groups of its own /etc
    spec           a request and an image, made into an OCI configuration
    etc            its resolv.conf, hosts and hostname
    container      a container: configuration, directories, lock
    store          all of them: names, adding, dropping, finding
    logs           what it wrote                        release    taking back what a running one holds

The verbs, on top:

    create  run  start  exec  stop  remove  pause  commit  changes  prune  inspect
    recovery       what a killed process left, brought to rest by whichever verb comes next
    trees          a look into its file system, also while it runs
    leaving        ending on time, though the kernel does not answer
"""
