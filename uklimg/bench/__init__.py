"""`uklimg bench`: an image against its plain-Linux twin.

``model`` has the values, ``variants`` what is compared, ``suites`` what is run and how what it prints is read,
``printed`` reads consoles, ``paper`` the paper's figures, ``report`` makes tables and JSON: all pure. ``picture``
draws, ``boot`` boots.
"""
