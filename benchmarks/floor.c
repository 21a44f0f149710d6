/* The least that gives a command a private, throw-away file system: unshare, tmpfs, fork, exec, wait. Not a sandbox.
   floor COMMAND [ARGUMENT ...]; static, so that no dynamic loader counts. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

static int put(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    return fd < 0 || write(fd, text, strlen(text)) < 0 || close(fd);
}

int main(int argc, char **argv)
{
    uid_t uid = getuid();
    gid_t gid = getgid();
    char map[64];
    int status;
    pid_t child = argc > 1 ? fork() : -1;
    if (child < 0)
        return 125;
    if (child == 0) {
        if (unshare(CLONE_NEWNS | (uid ? CLONE_NEWUSER : 0)))
            return 125;
        if (uid) {
            snprintf(map, sizeof map, "%u %u 1", uid, uid);
            if (put("/proc/self/uid_map", map) || put("/proc/self/setgroups", "deny"))
                return 125;
            snprintf(map, sizeof map, "%u %u 1", gid, gid);
            if (put("/proc/self/gid_map", map))
                return 125;
        }
        if (mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) || mount("floor", "/mnt", "tmpfs", MS_NOSUID | MS_NODEV, NULL))
            return 125;
        execvp(argv[1], argv + 1);
        return 127;
    }
    return waitpid(child, &status, 0) == child && WIFEXITED(status) ? WEXITSTATUS(status) : 125;
}
