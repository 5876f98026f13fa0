// For LD_PRELOAD: a host whose clock is wrong, and a folder of a file server without locks, whose files are replaced.
//
//   FAULTY_SECONDS  what is added to the time of day
//   FAULTY_FOLDER   below it locks are refused (ENOLCK), and each third file that is opened to be read is stale (ESTALE)

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long seconds(void) {
    const char *text = getenv("FAULTY_SECONDS");
    return text == NULL ? 0 : atol(text);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (real == NULL) real = dlsym(RTLD_NEXT, "clock_gettime");
    int answer = real(clock, now);
    if (answer == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += seconds();
    return answer;
}

time_t time(time_t *there) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (there != NULL) *there = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

static int is_below(int folder, const char *name) {
    const char *there = getenv("FAULTY_FOLDER");
    char link[64], path[PATH_MAX];
    if (there == NULL) return 0;
    if (name != NULL && name[0] == '/') return strncmp(name, there, strlen(there)) == 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strncmp(path, there, strlen(there)) == 0;
}

static int is_stale(int folder, const char *name, int flags) {
    static __thread unsigned opened;  // who tries once more is not met by the same twice
    if ((flags & (O_DIRECTORY | O_ACCMODE)) != O_RDONLY || !is_below(folder, name)) return 0;
    return ++opened % 3 == 0;
}

#define OPENAT(NAME)                                                            \
    int NAME(int folder, const char *name, int flags, ...) {                    \
        static int (*real)(int, const char *, int, ...);                        \
        if (real == NULL) real = dlsym(RTLD_NEXT, #NAME);                       \
        va_list rest;                                                           \
        va_start(rest, flags);                                                  \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                           \
        if (is_stale(folder, name, flags)) {                                    \
            errno = ESTALE;                                                     \
            return -1;                                                          \
        }                                                                       \
        return real(folder, name, flags, mode);                                 \
    }
OPENAT(openat)
OPENAT(openat64)

#define OPEN(NAME)                                                              \
    int NAME(const char *name, int flags, ...) {                                \
        static int (*real)(const char *, int, ...);                             \
        if (real == NULL) real = dlsym(RTLD_NEXT, #NAME);                       \
        va_list rest;                                                           \
        va_start(rest, flags);                                                  \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                           \
        if (name[0] == '/' && is_stale(-1, name, flags)) {                      \
            errno = ESTALE;                                                     \
            return -1;                                                          \
        }                                                                       \
        return real(name, flags, mode);                                         \
    }
OPEN(open)
OPEN(open64)

static int is_lock(int command) {
    return command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW;
}

#define FCNTL(NAME)                                        \
    int NAME(int fd, int command, ...) {                   \
        static int (*real)(int, int, ...);                 \
        if (real == NULL) real = dlsym(RTLD_NEXT, #NAME);  \
        va_list rest;                                      \
        va_start(rest, command);                           \
        void *argument = va_arg(rest, void *);             \
        va_end(rest);                                      \
        if (is_lock(command) && is_below(fd, NULL)) {      \
            errno = ENOLCK;                                \
            return -1;                                     \
        }                                                  \
        return real(fd, command, argument);                \
    }
FCNTL(fcntl)
FCNTL(fcntl64)

int flock(int fd, int operation) {
    static int (*real)(int, int);
    if (real == NULL) real = dlsym(RTLD_NEXT, "flock");
    if (is_below(fd, NULL)) {
        errno = ENOLCK;
        return -1;
    }
    return real(fd, operation);
}
