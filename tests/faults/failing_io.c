/* A disk that fails when it is told to: preloaded into the service (LD_PRELOAD) by io_errors.rs, which says how and when.
 *
 * FAIL_IN is the folder whose files fail, FAIL_CONTROL a file of eight 64-bit words that both sides see: the test writes the first
 * five with ordinary writes, this library maps the file. A call that fails, and only such a call, is not done: a sync reaches no disk, and
 * a write leaves half of its bytes behind, as a torn page does. Reads are left alone, and so is SQLite's -shm file, which is memory. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

enum { WRITES = 1, SYNCS = 2, TRUNCATIONS = 4 };

struct order {
    uint64_t armed;  /* 0: nothing fails. The test sets it last. */
    uint64_t kinds;  /* which calls count, and fail */
    int64_t skipped; /* how many of them still go well */
    int64_t left;    /* how many then fail */
    uint64_t error;  /* with which errno */
    uint64_t failed; /* how many failed */
    uint64_t seen;   /* how many counted */
    uint64_t unused;
};

static struct order *order;
static const char *folder;

static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_pwrite64)(int, const void *, size_t, off64_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_ftruncate)(int, off_t);
static int (*real_ftruncate64)(int, off64_t);

/* POSIX lets dlsym's answer be a function; ISO C has no cast for it. */
static void find(void *pointer, const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) {
        fprintf(stderr, "failing_io: there is no %s\n", name);
        abort();
    }
    memcpy(pointer, &found, sizeof found);
}

/* The others may be called before the constructor has run; none of those calls is one of the service's. */
#define REAL(name) (real_##name ? (void)0 : find(&real_##name, #name))

__attribute__((constructor)) static void open_control(void)
{
    const char *path = getenv("FAIL_CONTROL");
    folder = getenv("FAIL_IN");
    if (!path || !folder)
        return;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    void *mapped = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *order, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED) {
        /* A service that runs without the faults that were asked for would pass every test. */
        perror("failing_io: FAIL_CONTROL");
        abort();
    }
    close(fd);
    order = mapped;
}

/* Whether the file is one of those that fail. It is asked of the kernel at each call, as a number is soon another file's. */
static int is_ours(int fd)
{
    char link[32], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return strstr(path, folder) && !(length > 4 && !strcmp(path + length - 4, "-shm"));
}

/* Whether this call fails; errno is set then. */
static int fails(uint64_t kind, int fd)
{
    int before = errno;
    if (!order || !__atomic_load_n(&order->armed, __ATOMIC_ACQUIRE) || !(order->kinds & kind) || !is_ours(fd)) {
        errno = before;
        return 0;
    }
    errno = before;
    __atomic_add_fetch(&order->seen, 1, __ATOMIC_RELAXED);
    if (__atomic_fetch_sub(&order->skipped, 1, __ATOMIC_RELAXED) > 0)
        return 0;
    if (__atomic_fetch_sub(&order->left, 1, __ATOMIC_RELAXED) <= 0)
        return 0;
    __atomic_add_fetch(&order->failed, 1, __ATOMIC_RELEASE);
    return 1;
}

static int refuse(void)
{
    errno = (int)order->error;
    return -1;
}

ssize_t write(int fd, const void *bytes, size_t size)
{
    REAL(write);
    if (!fails(WRITES, fd))
        return real_write(fd, bytes, size);
    if (real_write(fd, bytes, size / 2) < 0)
        return -1;
    return refuse();
}

ssize_t pwrite(int fd, const void *bytes, size_t size, off_t at)
{
    REAL(pwrite);
    if (!fails(WRITES, fd))
        return real_pwrite(fd, bytes, size, at);
    if (real_pwrite(fd, bytes, size / 2, at) < 0)
        return -1;
    return refuse();
}

ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t at)
{
    REAL(pwrite64);
    if (!fails(WRITES, fd))
        return real_pwrite64(fd, bytes, size, at);
    if (real_pwrite64(fd, bytes, size / 2, at) < 0)
        return -1;
    return refuse();
}

int fsync(int fd)
{
    REAL(fsync);
    return fails(SYNCS, fd) ? refuse() : real_fsync(fd);
}

int fdatasync(int fd)
{
    REAL(fdatasync);
    return fails(SYNCS, fd) ? refuse() : real_fdatasync(fd);
}

int ftruncate(int fd, off_t size)
{
    REAL(ftruncate);
    return fails(TRUNCATIONS, fd) ? refuse() : real_ftruncate(fd, size);
}

int ftruncate64(int fd, off64_t size)
{
    REAL(ftruncate64);
    return fails(TRUNCATIONS, fd) ? refuse() : real_ftruncate64(fd, size);
}
