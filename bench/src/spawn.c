// Starts a program again and again, as somebody without Ringfence would: fork, exec, wait.
//
//   spawn COUNT CLIENTS SECONDS PROGRAM [ARGUMENT...]
//
// CLIENTS processes each start COUNT programs one after the other, or as many as fit into SECONDS when that is not 0.
// `{}` in an argument becomes a number that is used once. Prints JSON: microseconds of each, and the seconds of all.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void client(int number, long count, double seconds, char **argv, int out) {
    FILE *to = fdopen(out, "w");
    double end = now_us() + seconds * 1e6;
    long unique = (long)getpid() * 1000000L;
    for (long i = 0; seconds > 0 ? now_us() < end : i < count; i++) {
        char text[64][512];
        char *args[65];
        int n = 0;
        for (; argv[n] && n < 64; n++) {
            char *hole = strstr(argv[n], "{}");
            args[n] = argv[n];
            if (hole) {
                snprintf(text[n], sizeof text[n], "%.*s%d-%ld%s", (int)(hole - argv[n]), argv[n], number, unique + i,
                         hole + 2);
                args[n] = text[n];
            }
        }
        args[n] = NULL;
        double start = now_us();
        pid_t pid = fork();
        if (pid == 0) {
            execv(args[0], args);
            _exit(127);
        }
        int status = 0;
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
        double took = now_us() - start;
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
            fprintf(stderr, "spawn: %s ended with status %d\n", args[0], status);
            _exit(1);
        }
        fprintf(to, "%.1f\n", took);
    }
    fclose(to);
    _exit(0);
}

int main(int argc, char **argv) {
    if (argc < 5) return 2;
    long count = atol(argv[1]);
    int clients = atoi(argv[2]);
    double seconds = atof(argv[3]);
    FILE *from[64];
    if (clients < 1 || clients > 64) return 2;
    double start = now_us();
    for (int i = 0; i < clients; i++) {
        // A temporary file and no pipe: a pipe fills while nobody reads, and the client would wait.
        FILE *file = tmpfile();
        if (!file) return 1;
        from[i] = file;
        if (fork() == 0) client(i, count, seconds, argv + 4, fileno(file));
    }
    int failed = 0, status;
    while (wait(&status) > 0) failed |= status;
    double all = (now_us() - start) / 1e6;
    if (failed) return 1;
    printf("{\"seconds\":%.6f,\"us\":[", all);
    const char *comma = "";
    for (int i = 0; i < clients; i++) {
        char line[64];
        rewind(from[i]);
        while (fgets(line, sizeof line, from[i])) {
            line[strcspn(line, "\n")] = 0;
            printf("%s%s", comma, line);
            comma = ",";
        }
    }
    printf("]}\n");
    return 0;
}
