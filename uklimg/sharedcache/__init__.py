"""A cache that machines share: results of steps by key, in a registry's repository or in a folder.

An entry is an OCI artifact: its config is the record of the step, its layers are the blobs of the result. The key is
its tag in a repository, its name in a folder, which is an OCI layout. ``entry`` says what is checked of one.
"""
