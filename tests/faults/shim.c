/*
 * A disk that fails, for programs that are linked with glibc: LD_PRELOAD this, and say in FAULTS which calls fail.
 *
 * FAULTS is a list of "OP PATH AFTER ERRNO", separated by ';'. PATH is a part of the file's path. OP is one of
 *   write  the first AFTER bytes are written, then ERRNO; the write that reaches the limit is a short one
 *   read   the first AFTER bytes are read, then ERRNO
 *   sync   the first AFTER flushes succeed, then ERRNO
 *   open   the first AFTER openings for writing succeed, then ERRNO
 *   gone   from the first AFTER written bytes on, every call fails with ERRNO
 *   lose   from the first AFTER written bytes on, writes say that they succeeded, and did nothing
 *   bad    the sector at byte AFTER cannot be read, ERRNO, until it is written
 * CLOCK=SECONDS makes the wall clock stand there.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

struct fault {
    char op[8];
    char path[256];
    long after;
    int error;
    long counted;
};

static struct fault faults[16];
static int count = -1;

static void load(void)
{
    if (count >= 0)
        return;
    count = 0;
    const char *text = getenv("FAULTS");
    while (text && *text && count < 16) {
        struct fault *f = &faults[count];
        if (sscanf(text, " %7s %255s %ld %d", f->op, f->path, &f->after, &f->error) == 4)
            count++;
        text = strchr(text, ';');
        text = text ? text + 1 : NULL;
    }
}

static struct fault *find(const char *op, const char *path)
{
    load();
    for (int i = 0; i < count; i++)
        if (!strcmp(faults[i].op, op) && strstr(path, faults[i].path))
            return &faults[i];
    return NULL;
}

static struct fault *find_fd(const char *op, int fd)
{
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0)
        return NULL;
    path[n] = 0;
    return find(op, path);
}

static int is_gone(struct fault *f)
{
    return f && f->counted >= f->after;
}

static int fail(struct fault *f)
{
    errno = f->error;
    return -1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* How much of a write or read goes through: -1 is an error that was set. */
static ssize_t allowed(const char *op, int fd, size_t n)
{
    struct fault *f = find_fd("gone", fd);
    if (is_gone(f))
        return fail(f);
    if (f && !strcmp(op, "write"))
        f->counted += n;
    f = find_fd(op, fd);
    if (!f || n == 0)
        return n;
    long left = f->after - f->counted;
    /* Past the cache a disk takes and gives whole sectors. */
    if ((long)n > left && fcntl(fd, F_GETFL) & O_DIRECT)
        left -= left % 512;
    if (left <= 0)
        return fail(f);
    if ((long)n > left)
        n = left;
    f->counted += n;
    return n;
}

static int is_bad_sector(struct fault *f, size_t n, off64_t at)
{
    return f && !f->counted && at < f->after + 512 && at + (off64_t)n > f->after;
}

static int is_lost(int fd, size_t n)
{
    struct fault *f = find_fd("lose", fd);
    if (f)
        f->counted += n;
    return f && f->counted > f->after;
}

ssize_t pwrite64(int fd, const void *bytes, size_t n, off64_t at)
{
    ssize_t some = allowed("write", fd, n);
    if (some < 0 || is_lost(fd, some))
        return some;
    struct fault *f = find_fd("bad", fd);
    if (is_bad_sector(f, some, at))
        f->counted = 1;
    return REAL(pwrite64)(fd, bytes, some, at);
}

ssize_t write(int fd, const void *bytes, size_t n)
{
    ssize_t some = allowed("write", fd, n);
    if (some < 0 || is_lost(fd, some))
        return some;
    return REAL(write)(fd, bytes, some);
}

ssize_t pread64(int fd, void *bytes, size_t n, off64_t at)
{
    struct fault *f = find_fd("bad", fd);
    if (is_bad_sector(f, n, at))
        return fail(f);
    ssize_t some = allowed("read", fd, n);
    return some < 0 ? some : REAL(pread64)(fd, bytes, some, at);
}

ssize_t read(int fd, void *bytes, size_t n)
{
    ssize_t some = allowed("read", fd, n);
    return some < 0 ? some : REAL(read)(fd, bytes, some);
}

static int sync_fails(int fd)
{
    struct fault *f = find_fd("gone", fd);
    if (is_gone(f))
        return fail(f);
    f = find_fd("sync", fd);
    if (f && f->counted++ >= f->after)
        return fail(f);
    return 0;
}

int fsync(int fd)
{
    return sync_fails(fd) ? -1 : REAL(fsync)(fd);
}

int fdatasync(int fd)
{
    return sync_fails(fd) ? -1 : REAL(fdatasync)(fd);
}

int open64(const char *path, int flags, ...)
{
    va_list more;
    va_start(more, flags);
    mode_t mode = va_arg(more, mode_t);
    va_end(more);
    struct fault *f = find("gone", path);
    if (is_gone(f))
        return fail(f);
    f = (flags & O_ACCMODE) == O_RDONLY ? NULL : find("open", path);
    if (f && f->counted++ >= f->after)
        return fail(f);
    return REAL(open64)(path, flags, mode);
}

int clock_gettime(clockid_t which, struct timespec *now)
{
    const char *text = getenv("CLOCK");
    if (which == CLOCK_REALTIME && text) {
        *now = (struct timespec){.tv_sec = atol(text)};
        return 0;
    }
    return REAL(clock_gettime)(which, now);
}
