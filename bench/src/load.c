// A client of the HTTP interface that costs little, so that what is measured is the server: blocking sockets, one
// kept-alive connection each, one write(2) a request, no JSON parser.
//
//   load PORT create COUNT             create, first exec, destroy; one after the other
//   load PORT run COUNT                POST /v1/run, one after the other
//   load PORT exec COUNT ID            exec in the sandbox ID
//   load PORT execfor SECONDS ID       exec in ID for a time
//   load PORT cycles SECONDS CLIENTS   create, exec, destroy by CLIENTS at once
//   load PORT many COUNT FILE          create COUNT sandboxes and leave them; their ids go to FILE
//   load PORT each FILE                exec in each of FILE
//   load PORT destroy FILE             destroy each of FILE
//   load PORT stdout MIB ID PROGRAM    run `PROGRAM pipe MIB` in ID and count what comes
//   load PORT upload MIB ID PATH       PUT a file
//   load PORT download MIB ID PATH     GET it
//   load 0 loopback MIB                the same bytes through a TCP connection and nothing else
//   load 0 pipe MIB PROGRAM            the same bytes through a pipe and nothing else
//
// The key is in the environment: RF_BENCH_KEY. The program that is run: RF_BENCH_EXEC, a JSON body. Prints JSON.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 1 << 20, KEPT = 16 * 1024 };

typedef struct {
    int fd;
    char *buffer;  // what was read and not yet used: at..end
    size_t at, end;
    int status;
    int kind_seen[256];
    char kept[KEPT];  // the first bytes of the answer's body
    size_t kept_len;
    unsigned long long body_len;     // bytes of the body
    unsigned long long stdout_len;   // of them, payload of standard output frames
    int frames;                      // whether the body is frames
    unsigned char header[8];
    size_t header_len;
    unsigned long long payload_left;
} Connection;

static int port;
static const char *key;
static const char *exec_body;

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fprintf(stderr, "load: ");
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    va_end(args);
    exit(1);
}

static void connect_to(Connection *c) {
    memset(c, 0, sizeof *c);
    c->buffer = malloc(BUFFER);
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (!c->buffer || c->fd < 0 || connect(c->fd, (struct sockaddr *)&to, sizeof to)) die("connect: %s", strerror(errno));
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static void write_all(int fd, const char *bytes, size_t len) {
    while (len > 0) {
        ssize_t done = write(fd, bytes, len);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) die("write: %s", strerror(errno));
        bytes += done;
        len -= done;
    }
}

static void fill(Connection *c) {
    if (c->at == c->end) c->at = c->end = 0;
    if (c->end == BUFFER) die("an answer's header is too long");
    ssize_t done;
    do done = read(c->fd, c->buffer + c->end, BUFFER - c->end);
    while (done < 0 && errno == EINTR);
    if (done <= 0) die("the server closed the connection: %s", done ? strerror(errno) : "end");
    c->end += done;
}

// A line without its line end.
static char *line(Connection *c) {
    for (;;) {
        char *end = memmem(c->buffer + c->at, c->end - c->at, "\r\n", 2);
        if (end) {
            char *start = c->buffer + c->at;
            *end = 0;
            c->at = end + 2 - c->buffer;
            return start;
        }
        if (c->at > 0) {
            memmove(c->buffer, c->buffer + c->at, c->end - c->at);
            c->end -= c->at;
            c->at = 0;
        }
        fill(c);
    }
}

static void keep(Connection *c, const char *bytes, size_t len) {
    size_t room = KEPT - 1 - c->kept_len;
    if (len > room) len = room;
    memcpy(c->kept + c->kept_len, bytes, len);
    c->kept_len += len;
    c->kept[c->kept_len] = 0;
}

// Takes bytes of a body.
static void take(Connection *c, const char *bytes, size_t len) {
    c->body_len += len;
    if (!c->frames) {
        keep(c, bytes, len);
        return;
    }
    while (len > 0) {
        if (c->payload_left == 0 && c->header_len < 8) {
            c->header[c->header_len++] = *bytes++;
            len--;
            if (c->header_len < 8) continue;
            c->payload_left = (unsigned)c->header[4] << 24 | c->header[5] << 16 | c->header[6] << 8 | c->header[7];
            c->kind_seen[c->header[0]]++;
            if (c->payload_left == 0) c->header_len = 0;
            continue;
        }
        size_t piece = len < c->payload_left ? len : c->payload_left;
        if (c->header[0] == 1) c->stdout_len += piece;
        else keep(c, bytes, piece);
        bytes += piece;
        len -= piece;
        c->payload_left -= piece;
        if (c->payload_left == 0) c->header_len = 0;
    }
}

static void take_exactly(Connection *c, unsigned long long len) {
    while (len > 0) {
        if (c->at == c->end) fill(c);
        size_t piece = c->end - c->at;
        if (piece > len) piece = len;
        take(c, c->buffer + c->at, piece);
        c->at += piece;
        len -= piece;
    }
}

// Reads one answer.
static void answer(Connection *c) {
    c->kept_len = 0;
    c->kept[0] = 0;
    c->body_len = c->stdout_len = 0;
    c->frames = 0;
    c->header_len = 0;
    c->payload_left = 0;
    memset(c->kind_seen, 0, sizeof c->kind_seen);
    char *status = line(c);
    if (strncmp(status, "HTTP/1.1 ", 9)) die("not HTTP: %.60s", status);
    c->status = atoi(status + 9);
    long long length = -1;
    int chunked = 0;
    for (;;) {
        char *header = line(c);
        if (!*header) break;
        if (!strncasecmp(header, "content-length:", 15)) length = atoll(header + 15);
        if (!strncasecmp(header, "transfer-encoding: chunked", 26)) chunked = 1;
        if (!strncasecmp(header, "content-type: application/vnd.ringfence.frames", 46)) c->frames = 1;
    }
    if (chunked) {
        for (;;) {
            unsigned long long piece = strtoull(line(c), NULL, 16);
            take_exactly(c, piece);
            if (*line(c)) die("a chunk has no end");
            if (piece == 0) break;
        }
    } else if (length > 0) take_exactly(c, length);
}

static void ask(Connection *c, const char *method, const char *path, const char *more, const char *body, long long len) {
    char head[4096];
    size_t body_len = body ? strlen(body) : 0;
    if (len < 0) len = body_len;
    int n = snprintf(head, sizeof head,
                     "%s %s HTTP/1.1\r\nhost: 127.0.0.1:%d\r\nauthorization: Bearer %s\r\n%s%scontent-length: %lld\r\n\r\n%s",
                     method, path, port, key, more ? more : "", body ? "content-type: application/json\r\n" : "", len,
                     body ? body : "");
    if (n >= (int)sizeof head) die("a request is too long");
    write_all(c->fd, head, n);
}

static int call(Connection *c, const char *method, const char *path, const char *body) {
    ask(c, method, path, NULL, body, -1);
    answer(c);
    return c->status;
}

static void want(Connection *c, int ok, const char *what) {
    if (!ok) die("%s: status %d: %.300s", what, c->status, c->kept);
}

static void exec_in(Connection *c, const char *id) {
    char path[128];
    snprintf(path, sizeof path, "/v1/sandboxes/%s/exec", id);
    call(c, "POST", path, exec_body);
    want(c, c->status == 200 && strstr(c->kept, "\"code\":0"), "exec");
}

static void create(Connection *c, char id[64]) {
    const char *body = getenv("RF_BENCH_SANDBOX");
    call(c, "POST", "/v1/sandboxes", body ? body : "{}");
    char *found = strstr(c->kept, "\"id\":\"sbx_");
    want(c, (c->status == 200 || c->status == 201) && found, "create");
    snprintf(id, 64, "%.36s", found + 6);
}

static void destroy(Connection *c, const char *id) {
    char path[128];
    snprintf(path, sizeof path, "/v1/sandboxes/%s", id);
    call(c, "DELETE", path, NULL);
    want(c, c->status / 100 == 2, "destroy");
}

static void list(const char *name, const double *values, long count) {
    printf("\"%s\":[", name);
    for (long i = 0; i < count; i++) printf("%s%.1f", i ? "," : "", values[i]);
    printf("]");
}

static double end_us;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static double *cycle_us;
static long cycle_count, cycle_room;

static void *cycles(void *unused) {
    Connection c;
    char id[64];
    connect_to(&c);
    while (now_us() < end_us) {
        double start = now_us();
        create(&c, id);
        exec_in(&c, id);
        destroy(&c, id);
        double took = now_us() - start;
        pthread_mutex_lock(&lock);
        if (cycle_count == cycle_room) {
            cycle_room = cycle_room ? cycle_room * 2 : 1024;
            cycle_us = realloc(cycle_us, cycle_room * sizeof *cycle_us);
            if (!cycle_us) die("memory");
        }
        cycle_us[cycle_count++] = took;
        pthread_mutex_unlock(&lock);
    }
    close(c.fd);
    return unused;
}

static char chunk[1 << 20];

static void rate(unsigned long long bytes, double us) {
    printf("{\"bytes\":%llu,\"us\":%.1f}\n", bytes, us);
}

static void loopback(long mib) {
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 1) ||
        getsockname(listener, (struct sockaddr *)&at, &len))
        die("listen: %s", strerror(errno));
    pid_t pid = fork();
    if (pid == 0) {
        int to = accept(listener, NULL, NULL);
        for (long i = 0; i < mib; i++) write_all(to, chunk, sizeof chunk);
        _exit(0);
    }
    port = ntohs(at.sin_port);
    Connection c;
    connect_to(&c);
    double start = now_us();
    unsigned long long all = 0;
    ssize_t done;
    while ((done = read(c.fd, c.buffer, BUFFER)) > 0) all += done;
    rate(all, now_us() - start);
    waitpid(pid, NULL, 0);
}

static void from_pipe(const char *program, char *mib) {
    int ends[2];
    if (pipe(ends)) die("pipe: %s", strerror(errno));
    double start = now_us();
    pid_t pid = fork();
    if (pid == 0) {
        dup2(ends[1], 1);
        close(ends[0]);
        execl(program, program, "pipe", mib, NULL);
        _exit(127);
    }
    close(ends[1]);
    unsigned long long all = 0;
    ssize_t done;
    while ((done = read(ends[0], chunk, sizeof chunk)) > 0) all += done;
    waitpid(pid, NULL, 0);
    rate(all, now_us() - start);
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    port = atoi(argv[1]);
    const char *what = argv[2];
    long count = atol(argv[3]);
    key = getenv("RF_BENCH_KEY");
    exec_body = getenv("RF_BENCH_EXEC");
    if (!exec_body) exec_body = "{\"argv\":[\"/bin/true\"]}";
    if (!strcmp(what, "loopback")) return loopback(count), 0;
    if (!strcmp(what, "pipe") && argc > 4) return from_pipe(argv[4], argv[3]), 0;
    if (!key) die("RF_BENCH_KEY is not set");
    if (!strcmp(what, "cycles") && argc > 4) {
        pthread_t threads[64];
        int clients = atoi(argv[4]);
        if (clients < 1 || clients > 64) return 2;
        double start = now_us();
        end_us = start + atof(argv[3]) * 1e6;
        for (int i = 0; i < clients; i++) pthread_create(&threads[i], NULL, cycles, NULL);
        for (int i = 0; i < clients; i++) pthread_join(threads[i], NULL);
        printf("{\"seconds\":%.6f,", (now_us() - start) / 1e6);
        list("us", cycle_us, cycle_count);
        printf("}\n");
        return 0;
    }
    static Connection c;
    connect_to(&c);
    char id[64];
    if (!strcmp(what, "create") || !strcmp(what, "run")) {
        double *us[4];
        for (int i = 0; i < 4; i++) us[i] = calloc(count + 1, sizeof(double));
        int once = !strcmp(what, "run");
        // The pool fills again while nobody waits for it, if that is asked for.
        const char *pause = getenv("RF_BENCH_PAUSE_MS");
        char body[4096];
        snprintf(body, sizeof body, "{\"exec\":%s}", exec_body);
        // One beforehand that does not count: it opens what is opened once, such as the connection to the store.
        for (long i = -1; i < count; i++) {
            double *all = i < 0 ? &us[0][count] : &us[0][i];
            double start = now_us();
            if (once) {
                call(&c, "POST", "/v1/run", body);
                want(&c, c.status == 200 && strstr(c.kept, "\"code\":0"), "run");
                *all = now_us() - start;
                if (pause) usleep(atoi(pause) * 1000);
                continue;
            }
            create(&c, id);
            double made = now_us();
            exec_in(&c, id);
            double ran = now_us();
            destroy(&c, id);
            double gone = now_us();
            *all = ran - start;
            if (i < 0) continue;
            us[1][i] = made - start;
            us[2][i] = ran - made;
            us[3][i] = gone - ran;
            if (pause) usleep(atoi(pause) * 1000);
        }
        printf("{");
        list("us", us[0], count);
        if (!once) {
            printf(",");
            list("create", us[1], count);
            printf(",");
            list("exec", us[2], count);
            printf(",");
            list("destroy", us[3], count);
        }
        printf("}\n");
    } else if ((!strcmp(what, "exec") || !strcmp(what, "execfor")) && argc > 4) {
        int timed = !strcmp(what, "execfor");
        long room = timed ? 4000000 : count, n = 0;
        double *us = calloc(room + 1, sizeof(double));
        exec_in(&c, argv[4]);
        double begin = now_us(), end = begin + atof(argv[3]) * 1e6;
        while (n < room && (!timed || now_us() < end)) {
            double start = now_us();
            exec_in(&c, argv[4]);
            us[n++] = now_us() - start;
        }
        printf("{\"seconds\":%.6f,", (now_us() - begin) / 1e6);
        list("us", us, n);
        printf("}\n");
    } else if (!strcmp(what, "many") && argc > 4) {
        FILE *file = fopen(argv[4], "w");
        if (!file) die("%s: %s", argv[4], strerror(errno));
        double start = now_us();
        for (long i = 0; i < count; i++) {
            create(&c, id);
            fprintf(file, "%s\n", id);
            fflush(file);
        }
        printf("{\"count\":%ld,\"us\":%.1f}\n", count, now_us() - start);
    } else if (!strcmp(what, "each") || !strcmp(what, "destroy")) {
        FILE *file = fopen(argv[3], "r");
        if (!file) die("%s: %s", argv[3], strerror(errno));
        long n = 0;
        double start = now_us();
        while (fscanf(file, "%63s", id) == 1) {
            if (!strcmp(what, "each")) exec_in(&c, id);
            else destroy(&c, id);
            n++;
        }
        printf("{\"count\":%ld,\"us\":%.1f}\n", n, now_us() - start);
    } else if (!strcmp(what, "stdout") && argc > 5) {
        char path[128], body[1024];
        snprintf(path, sizeof path, "/v1/sandboxes/%s/exec", argv[4]);
        snprintf(body, sizeof body, "{\"argv\":[\"%s\",\"pipe\",\"%ld\"]}", argv[5], count);
        double start = now_us();
        ask(&c, "POST", path, "accept: application/vnd.ringfence.frames\r\n", body, -1);
        answer(&c);
        double took = now_us() - start;
        want(&c, c.status == 200 && c.kind_seen[3] == 1 && strstr(c.kept, "\"code\":0"), "exec");
        if (c.stdout_len != (unsigned long long)count << 20) die("%llu bytes came", c.stdout_len);
        rate(c.stdout_len, took);
    } else if (!strcmp(what, "upload") && argc > 5) {
        char path[512];
        snprintf(path, sizeof path, "/v1/sandboxes/%s/files?path=%s", argv[4], argv[5]);
        double start = now_us();
        ask(&c, "PUT", path, "content-type: application/octet-stream\r\n", NULL, (long long)count << 20);
        for (long i = 0; i < count; i++) write_all(c.fd, chunk, sizeof chunk);
        answer(&c);
        double took = now_us() - start;
        want(&c, c.status / 100 == 2, "upload");
        rate((unsigned long long)count << 20, took);
    } else if (!strcmp(what, "download") && argc > 5) {
        char path[512];
        snprintf(path, sizeof path, "/v1/sandboxes/%s/files?path=%s", argv[4], argv[5]);
        double start = now_us();
        call(&c, "GET", path, NULL);
        double took = now_us() - start;
        want(&c, c.status == 200, "download");
        if (c.body_len != (unsigned long long)count << 20) die("%llu bytes came", c.body_len);
        rate(c.body_len, took);
    } else return 2;
    return 0;
}
