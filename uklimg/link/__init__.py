"""What runs in the build container to make an application part of a kernel: linker script, link, embedding."""
