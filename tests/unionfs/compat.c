/* A program of 32 bits without a library: what an i386 program gets of a directory by the calls whose offsets and inode
   numbers have 32 bits. Lines on standard output, each value in hexadecimal:

       entry INODE OFFSET NAME    getdents(2)
       next OFFSET NAME           the first entry after lseek(2) to each of those offsets; without a NAME at the end
       wide OFFSET NAME           getdents64(2): an offset that is not a positive number of 32 bits
       old INODE OFFSET NAME      readdir(2)
       stat INODE NAME            stat(2) of each, through its oldest structure of 32-bit numbers
       fails ERRNO WHAT

   The arguments are directories. */

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

struct entry { u32 ino, off; u16 length; char name[]; };                      /* struct compat_linux_dirent */
struct entry64 { u32 ino, ino_high, off, off_high; u16 length; u8 type; char name[]; };
struct old { u32 ino, off; u16 length; char name[256]; };                     /* struct compat_old_linux_dirent */
struct status { u32 dev, ino; u32 rest[20]; };                                /* struct compat_stat */

enum { EXIT = 1, WRITE = 4, OPEN = 5, CLOSE = 6, LSEEK = 19, READDIR = 89 };
enum { LSTAT = 107, FCHDIR = 133, GETDENTS = 141, GETDENTS64 = 220 };
enum { DIRECTORY = 0200000, MOST = 4096 };

static int call(int number, long a, long b, long c)
{
    int result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
    return result;
}

static void text(const char *word)
{
    int length = 0;
    while (word[length])
        length++;
    call(WRITE, 1, (long)word, length);
}

static void hex(u32 value)
{
    char digits[10];
    for (int at = 0; at < 8; at++)
        digits[at] = "0123456789abcdef"[value >> (28 - 4 * at) & 15];
    digits[8] = ' ';
    digits[9] = 0;
    text(digits);
}

static void fails(int result, const char *what)
{
    text("fails ");
    hex(-result);
    text(what);
    text("\n");
}

static char buffer[1024];
static u32 offsets[MOST];

static void list(const char *path)
{
    int count = 0, got;
    int fd = call(OPEN, (long)path, DIRECTORY, 0);
    if (fd < 0)
        return fails(fd, "open");
    call(FCHDIR, fd, 0, 0);
    while ((got = call(GETDENTS, fd, (long)buffer, sizeof buffer)) > 0)
        for (int at = 0; at < got;) {
            struct entry *entry = (struct entry *)(buffer + at);
            struct status status;
            text("entry "), hex(entry->ino), hex(entry->off), text(entry->name), text("\n");
            int result = call(LSTAT, (long)entry->name, (long)&status, 0);
            if (result < 0)
                fails(result, "lstat");
            else
                text("stat "), hex(status.ino), text(entry->name), text("\n");
            if (count < MOST)
                offsets[count++] = entry->off;
            at += entry->length;
        }
    if (got < 0)
        fails(got, "getdents");
    for (int at = 0; at < count; at++) {
        int result = call(LSEEK, fd, offsets[at], 0);
        if (result != (int)offsets[at])
            fails(result, "lseek");
        got = call(GETDENTS, fd, (long)buffer, 280);
        if (got < 0)
            fails(got, "getdents after lseek");
        text("next "), hex(offsets[at]), text(got > 0 ? ((struct entry *)buffer)->name : ""), text("\n");
    }
    call(LSEEK, fd, 0, 0);
    while ((got = call(GETDENTS64, fd, (long)buffer, sizeof buffer)) > 0)
        for (int at = 0; at < got;) {
            struct entry64 *entry = (struct entry64 *)(buffer + at);
            if (entry->off_high || entry->off >> 31)
                text("wide "), hex(entry->off), text(entry->name), text("\n");
            at += entry->length;
        }
    call(LSEEK, fd, 0, 0);
    struct old old;
    while ((got = call(READDIR, fd, (long)&old, 1)) > 0) {
        old.name[old.length] = 0;
        text("old "), hex(old.ino), hex(old.off), text(old.name), text("\n");
    }
    if (got < 0)
        fails(got, "readdir");
    call(CLOSE, fd, 0, 0);
}

__attribute__((used)) static void run(u32 *stack)
{
    for (u32 at = 2; at <= stack[0]; at++)
        list((const char *)stack[at]);
    call(EXIT, 0, 0, 0);
}

__asm__(".globl _start\n_start:\n\tmov %esp, %eax\n\tand $-16, %esp\n\tsub $12, %esp\n\tpush %eax\n\tcall run\n");
