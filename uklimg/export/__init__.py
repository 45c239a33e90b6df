"""What an image becomes so that other hypervisors, firmware and orchestrators boot it.

``formats`` is the table; a module each has the formats of one family as small functions from a Job to a file or the
content of a folder. The same image and options give the same bytes: nothing in them is of the time, this machine or
the path, except where a format must name files by their whole path (libvirt).
"""
