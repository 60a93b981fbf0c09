"""Registries: images from and to servers of the OCI distribution API (distribution-spec spec.md).

    config         registries.toml: mirrors, plain HTTP, certificate authorities; which endpoints a registry has
    credentials    auth.json: who we are to a registry
    failures       how a registry can fail us, and which of it another try may heal
    retries        other tries, later and later
    transport      HTTP: connections, TLS, redirects, time-outs; proxies, response
    auth           Basic and Bearer (docker's token authentication)
    client         one repository at one endpoint: manifests, blobs, tags
    upload         a blob to a repository, in one piece or in chunks
    access         all of that, for one verb
    workers        several blobs at a time
    pull  push     images between a repository and the store
    obtain         the image that a container is to be made of, pulled when it is missing
    login          checking credentials

Standard library only. Imports runtime.images; nothing there imports this.
"""
