"""Helpers for tests; the fixtures built on them are in tests/conftest.py.

users      an unprivileged account made for one test session, and who a command runs as
install    a `sandbox` command that this account can execute
runner     run_sandbox: start that command with a clean environment and a home of its own
archives   small zip, tar, squashfs, AppImage-like and base64 files with exactly the entries a test wants
leaks      what a run may leave on the host (mounts, loop devices, processes, files), compared before and after
private    a mount namespace in which the system's own places are throw-away overlays
setuid     the setuid helper, installed in such a namespace
killing    a process killed at its N-th system call
no_tmpfile a process for which no file system knows O_TMPFILE, or flock
plans      arbitrary valid plans, for properties
racing     a process that swaps two names while they are used
echo       what the native parsers make of bytes
mutations  which lines of a module change the filesystem
escapes    what a hostile job tries, and that it gains nothing
launcher   a native program started with plans that a test writes
helper     the same with the installed setuid helper: policies, images, what is left
modes      which (engine, mode) pairs this machine supports, and whether each of them ran
fuse       /dev/fuse open to everybody, in a mount namespace of its own
wheels     wheels and sdists from PyPI, downloaded once into a cache outside the tree
debian_system  a Debian root that is entered as a machine is booted, to install packages in
debian     a C project from a Debian source package, the same way
buildbot   a Buildbot master and worker from PyPI
gitlab     GitLab Runner, as far as a custom executor sees it
"""
