"""What runs inside the virtual machine before the program: PID 1 (``init.c``) and how one talks to it."""
