/* A layer between a program and the files below one folder: the n-th write fails, or ends the process.

   cc -shared -fPIC -O1 -o faults.so faults.c -ldl
   LD_PRELOAD=./faults.so python …        then, by ctypes: faults_set("/folder", 7, ENOSPC)

   Writes are what changes the disk: opening for writing, write, pwrite, writev, fsync, rename, mkdir, ftruncate.
   With an error number, the n-th and all after it fail with it, as on a full disk; with 0 the process is killed
   in place of the n-th.
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static long at, seen;
static int error_number;

void faults_set(const char *below, long n, int number)
{
    strncpy(folder, below, sizeof folder - 1);
    at = n;
    seen = 0;
    error_number = number;
}

long faults_seen(void)
{
    return seen;
}

static int fails(int concerned)
{
    if (!folder[0] || !concerned)
        return 0;
    seen++;
    if (!at || seen < at)
        return 0;
    if (!error_number)
        kill(getpid(), SIGKILL);
    errno = error_number;
    return 1;
}

static int below(int fd)
{
    char link[64], path[PATH_MAX];
    ssize_t length;
    int before = errno;
    if (!folder[0])
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length < 0)
        return 0;
    path[length] = 0;
    return !strncmp(path, folder, strlen(folder));
}

static int named_below(const char *path)
{
    char whole[2 * PATH_MAX];
    if (!folder[0] || !path)
        return 0;
    if (path[0] == '/')
        return !strncmp(path, folder, strlen(folder));
    if (!getcwd(whole, PATH_MAX))
        return 0;
    return !strncmp(whole, folder, strlen(folder));
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define OPEN(name)                                                                  \
    int name(const char *path, int flags, ...)                                      \
    {                                                                               \
        int mode = 0;                                                               \
        if (flags & (O_CREAT | O_TMPFILE)) {                                        \
            va_list arguments;                                                      \
            va_start(arguments, flags);                                             \
            mode = va_arg(arguments, int);                                          \
            va_end(arguments);                                                      \
        }                                                                           \
        REAL(name);                                                                 \
        if ((flags & (O_WRONLY | O_RDWR | O_CREAT)) && fails(named_below(path)))    \
            return -1;                                                              \
        return real(path, flags, mode);                                             \
    }
OPEN(open)
OPEN(open64)

ssize_t write(int fd, const void *data, size_t size)
{
    REAL(write);
    return fails(below(fd)) ? -1 : real(fd, data, size);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset)
{
    REAL(pwrite);
    return fails(below(fd)) ? -1 : real(fd, data, size, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset)
{
    REAL(pwrite64);
    return fails(below(fd)) ? -1 : real(fd, data, size, offset);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    REAL(writev);
    return fails(below(fd)) ? -1 : real(fd, parts, count);
}

int fsync(int fd)
{
    REAL(fsync);
    return fails(below(fd)) ? -1 : real(fd);
}

int ftruncate(int fd, off_t size)
{
    REAL(ftruncate);
    return fails(below(fd)) ? -1 : real(fd, size);
}

int rename(const char *from, const char *to)
{
    REAL(rename);
    return fails(named_below(to)) ? -1 : real(from, to);
}

int mkdir(const char *path, mode_t mode)
{
    int (*real)(const char *, mode_t) = (int (*)(const char *, mode_t))dlsym(RTLD_NEXT, "mkdir");
    return fails(named_below(path)) ? -1 : real(path, mode);
}
