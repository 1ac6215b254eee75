/* Preloaded into a compiler. Once that is loaded, relocated and initialised, it does not run main, but serves requests
 * that arrive at its standard input, a socket: for each, a forked child runs main. `fork_server.py` is the other half.
 *
 * It needs no header of the C library, which need not be installed, only what the compiler itself is loaded with. */

typedef unsigned long size_t;
typedef int main_function(int, char **, char **);

struct iovec { void *base; size_t length; };
struct msghdr {
    void *name; unsigned name_length; struct iovec *parts; size_t part_count; void *control; size_t control_length;
    int flags;
};
struct control { size_t length; int level, type; int fds[4]; }; /* directory, input, output, error */

extern char **environ;
void *dlsym(void *, const char *);
long recvmsg(int, struct msghdr *, int), send(int, const void *, size_t, int);
int fork(void), getpid(void), getppid(void), setpgid(int, int), wait4(int, int *, int, void *);
int fchdir(int), dup2(int, int), close(int), prctl(int, ...), sigprocmask(int, const void *, void *);
void _exit(int) __attribute__((noreturn));

enum { NOHANG = 1, NOSIGNAL = 0x4000, TRUNCATED = 0x20 | 0x8, PDEATHSIG = 1, KILL = 9, SETMASK = 2, MOST_WORDS = 4096 };

static main_function *real_main;
static struct { int arguments, reaped; char text[250000]; } request; /* one of the numbers is 0 */
static char *words[MOST_WORDS + 1];

static void answer(int number, const long *usage) {
    long reply[19] = {number};
    for (int i = 0; usage && i < 18; i++)
        reply[i + 1] = usage[i];
    send(0, reply, sizeof reply, NOSIGNAL);
}

static void reap(int pid) {
    long usage[32];
    int status;
    answer(wait4(pid, &status, NOHANG, usage) == pid ? status : -1, usage);
}

/* The child's only way out is to return what main returned, so that the C library ends it as it ends any program. */
static int child(int server, const int *fds) {
    static char *nothing[1];
    prctl(PDEATHSIG, KILL);
    if (getppid() != server || setpgid(0, 0) || fchdir(fds[0]))
        _exit(127);
    for (int i = 0; i < 3; i++)
        if (dup2(fds[i + 1], i) < 0)
            _exit(127);
    for (int i = 0; i < 4; i++)
        close(fds[i]);
    environ = nothing;
    return real_main(request.arguments, words, nothing);
}

static int serve(int argc, char **argv, char **envp) {
    (void)argc, (void)argv, (void)envp;
    static const long no_signals[16];
    int server = getpid();
    sigprocmask(SETMASK, no_signals, 0); /* whoever started us may have had a moment without */
    for (answer(server, 0);;) {
        struct control control = {0};
        struct iovec part = {&request, sizeof request};
        struct msghdr message = {0, 0, &part, 1, &control, sizeof control, 0};
        long size = recvmsg(0, &message, 0);
        if (size < 8 || message.flags & TRUNCATED)
            _exit(size != 0);
        if (request.reaped) {
            reap(request.reaped);
            continue;
        }
        if (message.control_length != sizeof control || request.arguments > MOST_WORDS)
            _exit(1);
        char *next = request.text, *end = (char *)&request + size;
        for (int i = 0; i < request.arguments; i++) {
            words[i] = next;
            while (next < end && *next)
                next++;
            if (next++ >= end)
                _exit(1);
        }
        words[request.arguments] = 0;
        int pid = fork();
        if (!pid)
            return child(server, control.fds);
        if (pid > 0)
            setpgid(pid, pid);
        for (int i = 0; i < 4; i++)
            close(control.fds[i]);
        answer(pid, 0);
    }
}

int __libc_start_main(main_function *main, int argc, char **argv, void *init, void *fini, void *loader, void *stack) {
    int (*start)(main_function *, int, char **, void *, void *, void *, void *);
    start = dlsym((void *)-1, "__libc_start_main"); /* RTLD_NEXT */
    real_main = main;
    return start(serve, argc, argv, init, fini, loader, stack);
}
