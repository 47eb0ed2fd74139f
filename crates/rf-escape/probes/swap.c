/* Swaps names underfoot, as fast as it is let, until the file `on` is gone: run as `swap DIRECTORY LANE...`, each lane a
 * directory below it. In a lane two pairs of names change places again and again, each by one renameat2(2):
 *
 *   at   a directory with files in it       <->  way   a link that leads out
 *   leaf a file                             <->  trap  a link to a file that is outside, or a FIFO, in turn
 *
 * Somebody else may remove what is swapped: it is made anew. The swaps done are counted in `DIRECTORY/turns`, which is
 * eight bytes in the machine's own order. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define LANES_MAX 16
/* So many swaps at a stretch, a few microseconds each; then others have the processor. */
#define STRETCH 64

struct lane {
    int dir;
    /* The text of the link that leads to the outside directory. */
    char out[512];
};

static int exchange(int dir, const char *one, const char *two) {
    return syscall(SYS_renameat2, dir, one, dir, two, 2 /* RENAME_EXCHANGE */) == 0;
}

static void put(int dir, const char *name) {
    int fd = openat(dir, name, O_CREAT | O_EXCL | O_WRONLY, 0644);
    if (fd < 0)
        return;
    if (write(fd, "inside", 6) != 6)
        abort();
    close(fd);
}

static int is(int dir, const char *name, mode_t kind) {
    struct stat stat;
    return fstatat(dir, name, &stat, AT_SYMLINK_NOFOLLOW) == 0 && (stat.st_mode & S_IFMT) == kind;
}

static int missing(int dir, const char *name) {
    return faccessat(dir, name, F_OK, AT_SYMLINK_NOFOLLOW) != 0;
}

/* Makes what is missing, as the kind that its partner is not. */
static void make(struct lane *lane, int round) {
    const char *dirs[] = {"at", "way"}, *files[] = {"leaf", "trap"};
    char path[600];
    for (int one = 0; one < 2; one++) {
        if (missing(lane->dir, dirs[one])) {
            if (is(lane->dir, dirs[1 - one], S_IFDIR)) {
                symlinkat(lane->out, lane->dir, dirs[one]);
            } else if (mkdirat(lane->dir, dirs[one], 0755) == 0) {
                snprintf(path, sizeof path, "%s/secret", dirs[one]);
                put(lane->dir, path);
                snprintf(path, sizeof path, "%s/sub", dirs[one]);
                mkdirat(lane->dir, path, 0755);
                strcat(path, "/secret");
                put(lane->dir, path);
            }
        }
        if (missing(lane->dir, files[one])) {
            snprintf(path, sizeof path, "%s/secret", lane->out);
            if (!is(lane->dir, files[1 - one], S_IFREG))
                put(lane->dir, files[one]);
            else if (round % 2)
                symlinkat(path, lane->dir, files[one]);
            else
                mkfifoat(lane->dir, files[one], 0644);
        }
    }
}

int main(int count, char **words) {
    static struct lane lanes[LANES_MAX];
    char path[600];
    int lanes_count = 0;
    if (count < 3)
        return 2;
    for (int at = 2; at < count && lanes_count < LANES_MAX; at++, lanes_count++) {
        struct lane *lane = &lanes[lanes_count];
        snprintf(path, sizeof path, "%s/%s", words[1], words[at]);
        lane->dir = open(path, O_RDONLY | O_DIRECTORY);
        if (lane->dir < 0)
            return 3;
        ssize_t len = readlinkat(lane->dir, "out", lane->out, sizeof lane->out - 1);
        if (len < 0)
            return 4;
        make(lane, lanes_count);
    }
    snprintf(path, sizeof path, "%s/turns", words[1]);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || ftruncate(fd, 8) != 0)
        return 5;
    volatile uint64_t *turns = mmap(NULL, 8, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (turns == MAP_FAILED)
        return 6;
    snprintf(path, sizeof path, "%s/on", words[1]);
    for (int round = 0; access(path, F_OK) == 0; round++) {
        for (int turn = 0; turn < STRETCH; turn++) {
            struct lane *lane = &lanes[turn % lanes_count];
            int done = exchange(lane->dir, "at", "way") + exchange(lane->dir, "leaf", "trap");
            *turns += done;
            if (done < 2) /* somebody removed one */
                make(lane, round);
        }
        struct timespec rest = {0, 1000000};
        nanosleep(&rest, NULL);
    }
    return 0;
}
