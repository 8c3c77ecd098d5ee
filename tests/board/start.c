/* Where a Cortex-M3 begins: the top of its stack, and newlib's start for semihosting. */

extern void _start(void);
extern int _rename(const char *from, const char *to);
extern char stack_top;

struct vectors {
    char *stack;
    void (*reset)(void);
};

__attribute__((section(".vectors"), used)) static const struct vectors vectors = {
    &stack_top,
    _start,
};

/* newlib's own makes a link, which semihosting has not */
int rename(const char *from, const char *to) { return _rename(from, to); }
