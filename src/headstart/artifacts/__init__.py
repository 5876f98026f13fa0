"""Files that outlive a process and travel.

    container              what their formats have in common
    entry, bundle          one kernel; many in one file; known_failure: a failure that a bundle carries
    index                  the end of a bundle: what is in it, and signatures over that
    kinds, signing         which entries carry code; what a signature covers, by which kinds of keys
    identities             signatures of Sigstore's
    key_files, keyring     the user's keys, as lines and as files
    trust, seal            whose signatures count; adding one to a bundle
    packing, extracting    zstd as bundles use it; what is in an entry as files
    manifest               what a run compiled; specialization: one of it; retargeting: for other devices
    comparing              two manifests, or two bundles
    last_used, pruning     when what is in a bundle was last used; what of one may go
    run_records, runs      what a run's log is made of; reading them
    vetting                what of one from elsewhere may be compiled; vetting_words: what it may name
    reproduce              a failed request, as a plan that compiles it again

Decoding any of them runs nothing.
"""
