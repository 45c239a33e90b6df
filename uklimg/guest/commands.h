/* Commands beside the program, one at a time on each virtio-serial port "org.uklimg.exec.N": see commands.py. */
#ifndef UKLIMG_COMMANDS_H
#define UKLIMG_COMMANDS_H

#define COMMAND_PORT "org.uklimg.exec."
#define COMMAND_PORTS 5

/* In a child of PID 1: read a command from `port`, run it with `env` (NULL-terminated) in `workdir` unless it says
 * otherwise, and end when the host has taken the last of it. */
void serve_command(int port, char **env, const char *workdir) __attribute__((noreturn));

#endif
