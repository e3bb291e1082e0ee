/* Faults of a disk, put between a program and the C library (LD_PRELOAD).
 *
 * A control file, mapped by both sides, says what happens to files on one device: a delay or an error for fsync and
 * fdatasync, a delay or an error for writes. Everything else, sockets and logs included, is passed on untouched. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct control {
    uint64_t device;
    uint32_t sync_delay_us, write_delay_us;
    int32_t sync_errno, write_errno;
    /* Syncs are answered as done and not done: the disk that no program survives. */
    uint32_t sync_lies;
    /* Counted here, read by the test: a fault that never happened is not one that was survived. */
    uint32_t delayed, failed;
};

static volatile struct control *control;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("QUORUMAIL_DISK_FAULTS");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *map = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (map != MAP_FAILED) control = map;
}

static int is_ours(int fd) {
    struct stat st;
    int before = errno;
    int ours = fstat(fd, &st) == 0 && S_ISREG(st.st_mode) + S_ISDIR(st.st_mode) && st.st_dev == control->device;
    errno = before;
    return ours;
}

/* Answers whether the call is to end here with what `result` says; then errno says how. */
static int fault(int fd, volatile uint32_t *delay_us, volatile int32_t *error, int lies, int *result) {
    if (!control || (!*delay_us && !*error && !lies) || !is_ours(fd)) return 0;
    if (*delay_us) {
        struct timespec pause = {*delay_us / 1000000, (*delay_us % 1000000) * 1000L};
        __sync_fetch_and_add(&control->delayed, 1);
        nanosleep(&pause, NULL);
    }
    *result = lies ? 0 : -1;
    if (!*error) return lies;
    __sync_fetch_and_add(&control->failed, 1);
    errno = *error;
    return 1;
}

#define SYNC &control->sync_delay_us, &control->sync_errno, control->sync_lies
#define WRITE &control->write_delay_us, &control->write_errno, 0
#define WRAP(kind, result, name, parameters, ...)                          \
    result name parameters {                                              \
        static result(*next) parameters;                                  \
        if (!next) next = (result(*) parameters)dlsym(RTLD_NEXT, #name);   \
        int answer;                                                       \
        if (control && fault(fd, kind, &answer)) return answer;           \
        return next(__VA_ARGS__);                                         \
    }

WRAP(SYNC, int, fsync, (int fd), fd)
WRAP(SYNC, int, fdatasync, (int fd), fd)
WRAP(SYNC, int, syncfs, (int fd), fd)
WRAP(WRITE, ssize_t, write, (int fd, const void *data, size_t size), fd, data, size)
WRAP(WRITE, ssize_t, writev, (int fd, const struct iovec *parts, int count), fd, parts, count)
WRAP(WRITE, ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), fd, data, size, at)
WRAP(WRITE, ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), fd, data, size, at)
WRAP(WRITE, ssize_t, pwritev, (int fd, const struct iovec *parts, int count, off_t at), fd, parts, count, at)
WRAP(WRITE, ssize_t, pwritev64, (int fd, const struct iovec *parts, int count, off64_t at), fd, parts, count, at)
WRAP(WRITE, ssize_t, pwritev2, (int fd, const struct iovec *parts, int count, off_t at, int flags), fd, parts, count, at, flags)
WRAP(WRITE, ssize_t, pwritev64v2, (int fd, const struct iovec *parts, int count, off64_t at, int flags), fd, parts, count, at, flags)
