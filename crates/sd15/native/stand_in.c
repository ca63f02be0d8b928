// Loaded in the place of libtorch where the real one is missing: says what to type.
//
// The dynamic loader would stop at the first symbol it cannot resolve, before any constructor runs. But it relocates
// this library before the program that needs it, and calls the resolver of an indirect function while doing so: the
// one place where we can still speak. Nothing may be called from there, so it makes its system calls by hand.
#if defined(__x86_64__) && defined(__linux__)
static const char message[] =
    "error: libtorch is not where this program was built with it; type: cargo xtask setup\n";

static long call(long number, long a, long b, long c) {
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}

static void *resolve(void) {
    call(1, 2, (long)message, sizeof message - 1); // write(2, message)
    call(231, 1, 0, 0);                            // exit_group(1)
    return 0;
}

static void missing(void) __attribute__((ifunc("resolve")));
void *vodka_stand_in(void) { return (void *)missing; }
#else
void *vodka_stand_in(void) { return 0; }
#endif
