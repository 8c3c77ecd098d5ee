/* Where a Cortex-M3 begins: the top of its stack, and newlib's start for semihosting. */

extern void _start(void);
extern char stack_top;

struct vectors {
    char *stack;
    void (*reset)(void);
};

__attribute__((section(".vectors"), used)) static const struct vectors vectors = {
    &stack_top,
    _start,
};
