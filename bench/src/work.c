// Work to be done natively and inside a sandbox, timed by itself so that its start does not count.
//
//   work cpu            integer and floating point arithmetic, and memory that the caches do not hold
//   work files DIR      3,000 small files made, stated, read, renamed and removed below DIR
//   work bytes DIR      32 MiB written, read and rewritten in one file below DIR
//   work calls          200,000 system calls that do next to nothing
//   work pipe MIB       so many MiB to standard output, 1 MiB at a time
//
// Prints microseconds.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void cpu(void) {
    enum { WORDS = 4 * 1024 * 1024 };
    uint64_t *memory = malloc(WORDS * sizeof *memory);
    if (!memory) die("malloc");
    uint64_t x = 88172645463325252ull, sum = 0;
    double real = 1;
    for (int i = 0; i < WORDS; i++) memory[i] = i;
    for (int i = 0; i < 30 * 1000 * 1000; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        real = real * 1.0000001 + (double)(x & 7);
        if ((i & 15) == 0) sum += memory[x % WORDS]++;
    }
    if (sum == 42 || real == 42) puts("");
    free(memory);
}

static void files(const char *dir) {
    char path[4096], other[4096], bytes[1000];
    memset(bytes, 'x', sizeof bytes);
    for (int i = 0; i < 3000; i++) {
        snprintf(path, sizeof path, "%s/file-%d", dir, i);
        snprintf(other, sizeof other, "%s/other-%d", dir, i);
        struct stat st;
        int fd = open(path, O_CREAT | O_WRONLY | O_EXCL, 0644);
        if (fd < 0 || write(fd, bytes, sizeof bytes) != sizeof bytes) die(path);
        close(fd);
        if (stat(path, &st) || st.st_size != sizeof bytes) die(path);
        fd = open(path, O_RDONLY);
        if (fd < 0 || read(fd, bytes, sizeof bytes) != sizeof bytes) die(path);
        close(fd);
        if (rename(path, other)) die(other);
    }
    for (int i = 0; i < 3000; i++) {
        snprintf(other, sizeof other, "%s/other-%d", dir, i);
        if (unlink(other)) die(other);
    }
}

static void bytes(const char *dir) {
    enum { PIECE = 64 * 1024, PIECES = 512 };
    static char piece[PIECE];
    char path[4096];
    memset(piece, 'y', sizeof piece);
    snprintf(path, sizeof path, "%s/bytes", dir);
    int fd = open(path, O_CREAT | O_RDWR | O_TRUNC, 0644);
    if (fd < 0) die(path);
    for (int round = 0; round < 6; round++) {
        lseek(fd, 0, SEEK_SET);
        for (int i = 0; i < PIECES; i++) {
            ssize_t done = round % 2 ? read(fd, piece, PIECE) : write(fd, piece, PIECE);
            if (done != PIECE) die(path);
        }
    }
    close(fd);
    unlink(path);
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    double start = now_us();
    if (!strcmp(what, "cpu")) cpu();
    else if (!strcmp(what, "files") && argc > 2) files(argv[2]);
    else if (!strcmp(what, "bytes") && argc > 2) bytes(argv[2]);
    else if (!strcmp(what, "calls")) {
        for (int i = 0; i < 200000; i++) syscall(SYS_getppid);
    } else if (!strcmp(what, "pipe") && argc > 2) {
        static char mib[1 << 20];
        // As large as an unprivileged program may have it; where even that is refused, the usual size does.
        (void)fcntl(1, F_SETPIPE_SZ, 1 << 20);
        for (long left = atol(argv[2]); left > 0; left--) {
            for (size_t at = 0; at < sizeof mib;) {
                ssize_t done = write(1, mib + at, sizeof mib - at);
                if (done < 0) die("write");
                at += done;
            }
        }
        return 0;
    } else return 2;
    printf("%.1f\n", now_us() - start);
    return 0;
}
