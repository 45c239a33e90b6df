"""What will not work as a unikernel, told before a build: findings in sources and in objects. Pure.

What is said here is what docs/kernel.md and docs/troubleshooting.md say about the kernel.
"""
