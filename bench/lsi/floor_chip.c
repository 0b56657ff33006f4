/*
 * The chip: its registers, the processor that runs SCRIPTS, and the bus with the disk as target 0. That answers every
 * command at once, so nobody ever disconnects or reselects; negotiations are rejected.
 *
 * Ref: LSI53C895A Technical Manual, chapters 4 (registers) and 5 (instructions).
 */
#include "floor.h"

#include <string.h>

/* ---- Registers ---- */

enum {
    SCNTL0 = 0x00, SCNTL1 = 0x01, SCNTL2 = 0x02, SCNTL3 = 0x03, SXFER = 0x05, SDID = 0x06, SFBR = 0x08, SOCL = 0x09,
    SBCL = 0x0B, DSTAT = 0x0C, SSTAT0 = 0x0D, SSTAT1 = 0x0E, SSTAT2 = 0x0F, DSA = 0x10, ISTAT0 = 0x14, ISTAT1 = 0x15,
    CTEST1 = 0x19, CTEST2 = 0x1A, CTEST3 = 0x1B, TEMP = 0x1C, DFIFO = 0x20, CTEST5 = 0x22, DBC = 0x24, DNAD = 0x28,
    DSP = 0x2C, DSPS = 0x30, DMODE = 0x38, DIEN = 0x39, DCNTL = 0x3B, SIEN = 0x40, SIST = 0x42, GPCNTL = 0x47,
    STIME1 = 0x49, STEST3 = 0x4F, SIDL = 0x50, STEST4 = 0x52, CCNTL0 = 0x56, CCNTL1 = 0x57, DNAD64 = 0xB8,
    PMJAD1 = 0xC0, PMJAD2 = 0xC4, RBC = 0xC8, UA = 0xCC, ESA = 0xD0, IA = 0xD4, SBC = 0xD8, CSBC = 0xDC,
};
enum { ISTAT_DIP = 0x01, ISTAT_SIP = 0x02, ISTAT_INTF = 0x04, ISTAT_CON = 0x08, ISTAT_SIGP = 0x20 };
enum { ISTAT_SRST = 0x40, ISTAT_ABRT = 0x80 };
enum { DMA_ILLEGAL = 0x01, DMA_INTERRUPT = 0x04, DMA_ABORTED = 0x10, DMA_BUS_FAULT = 0x20 };
enum { SCSI_RESET = 0x02, SCSI_DISCONNECT = 0x04, SCSI_MISMATCH = 0x80, SCSI_GENERAL = 0x200, SCSI_TIMEOUT = 0x400 };
enum { SCSI_FATAL = SCSI_TIMEOUT | SCSI_MISMATCH | SCSI_DISCONNECT | SCSI_RESET | 0x09 };

static union {
    uint8_t byte[256];
    uint16_t half[128];
    uint32_t word[64];
} registers;

#define BYTE(at) registers.byte[at]
#define HALF(at) registers.half[(at) / 2]
#define WORD(at) registers.word[(at) / 4]

/* ---- Interrupts: posted in SIST and DSTAT until they are read ---- */

static enum { STOPPED, RUNNING, WAITING } processor; /* WAITING: for SIGP, and carries out the same instruction then */
static bool carry, selecting;                        /* selecting: an id nobody has */
static int64_t timer; /* when the general purpose timer expires; 0: it does not run */

static void update_pin(void)
{
    uint8_t pending = BYTE(ISTAT0);
    bool level = pending & ISTAT_INTF || (pending & ISTAT_SIP && HALF(SIST) & HALF(SIEN)) ||
                 (pending & ISTAT_DIP && BYTE(DSTAT) & BYTE(DIEN));

    set_pin(level && !(BYTE(DCNTL) & 0x02) && !(BYTE(ISTAT1) & 0x01));
}

static void post_scsi(uint32_t causes)
{
    HALF(SIST) |= causes;
    if (causes & (SCSI_FATAL | HALF(SIEN))) {
        processor = STOPPED;
        BYTE(ISTAT0) |= ISTAT_SIP;
        update_pin();
    }
}

static void post_dma(uint32_t causes)
{
    processor = STOPPED;
    BYTE(DSTAT) |= causes;
    BYTE(ISTAT0) |= ISTAT_DIP;
    update_pin();
}

/* The driver has read, and thereby cleared, some of what was posted. */
static void status_read(void)
{
    if (!HALF(SIST))
        BYTE(ISTAT0) &= ~ISTAT_SIP;
    if (!BYTE(DSTAT))
        BYTE(ISTAT0) &= ~ISTAT_DIP;
    update_pin();
}

/* ---- Memory ---- */

uint8_t chip_ram[CHIP_RAM_SIZE];
uint32_t chip_ram_address;

/* Memory as the chip sees it: its own RAM, or the client's. NULL, and the program has ended, where nothing answers. */
static void *reach(uint64_t address, uint64_t length)
{
    uint64_t offset = address - chip_ram_address;
    void *memory;

    if (offset < sizeof chip_ram && length <= sizeof chip_ram - offset)
        return chip_ram + offset;
    memory = client_memory(address, length);
    if (!memory)
        post_dma(DMA_BUS_FAULT);
    return memory;
}

/* ---- The bus ---- */

enum { DATA_OUT, DATA_IN, COMMAND, STATUS, MESSAGE_OUT = 6, MESSAGE_IN };
enum { MOST_MESSAGE = 256 };

static struct {
    bool connected, attention, acknowledge, ends;
    uint8_t phase; /* of the target that is connected, or was last */
    uint8_t in[16], out[MOST_MESSAGE];
    uint32_t in_length, out_length;
} bus;

static void bus_free(bool expected)
{
    memset(&bus, 0, sizeof bus);
    BYTE(SCNTL1) &= ~0x10;
    BYTE(ISTAT0) &= ~ISTAT_CON;
    BYTE(SSTAT2) |= 0x02;
    if (!expected && BYTE(SCNTL2) & 0x80)
        post_scsi(SCSI_DISCONNECT);
}

/* The initiator's messages; false if one of them frees the bus. Negotiations, and all that is unknown, are rejected. */
static bool hear(void)
{
    const uint8_t *said = bus.out;
    uint32_t length = bus.out_length;

    bus.out_length = 0;
    for (uint32_t at = 0; at < length; at++) {
        if (said[at] & 0x80) { /* IDENTIFY */
            task.lun = said[at] & 0x3F;
        } else if (said[at] >= 0x20 && said[at] <= 0x22) { /* a queue tag */
            at++;
        } else if (said[at] == 0x01) { /* an extended message */
            at += at + 1 < length ? 1 + said[at + 1] : 0;
            bus.in[0] = 0x07, bus.in_length = 1; /* MESSAGE REJECT */
        } else if (said[at] == 0x06 || (said[at] >= 0x0C && said[at] <= 0x0E)) { /* ABORT and the like */
            bus_free(false);
            return false;
        } else if (said[at] < 0x05 || said[at] > 0x09) {
            bus.in[0] = 0x07, bus.in_length = 1;
        }
    }
    return true;
}

/* The target decides what it does next. */
static void advance(void)
{
    if (bus.attention)
        bus.phase = MESSAGE_OUT;
    else if (bus.out_length && !hear())
        return;
    else if (bus.in_length)
        bus.phase = MESSAGE_IN;
    else if (bus.ends)
        bus_free(true);
    else if (!task.has_begun)
        bus.phase = COMMAND;
    else if (task.left)
        bus.phase = task.is_output ? DATA_OUT : DATA_IN;
    else
        bus.phase = STATUS;
}

static void clear_acknowledge(void)
{
    if (bus.acknowledge) {
        bus.acknowledge = false;
        advance();
    }
}

static void select_target(uint8_t target, bool attention)
{
    if (target) {
        selecting = true;
        return;
    }
    memset(&bus, 0, sizeof bus);
    bus.connected = true;
    bus.attention = attention;
    task.has_begun = false;
    task.lun = task.cdb_length = 0;
    BYTE(SCNTL1) |= 0x10;
    BYTE(ISTAT0) |= ISTAT_CON;
    BYTE(SCNTL2) |= 0x80;
    BYTE(SSTAT2) &= ~0x02;
    advance();
}

static uint32_t cdb_length(uint8_t code)
{
    static const uint8_t lengths[] = {6, 10, 10, 6, 16, 12, 6, 6};

    return lengths[code >> 5];
}

/* Moves bytes in the phase the bus is in; returns how many. */
static uint32_t move_bytes(uint8_t *memory, uint32_t count)
{
    switch (bus.phase) {
    case DATA_OUT:
    case DATA_IN:
        if (count > task.left)
            count = task.left;
        if (task.is_output)
            memcpy(task.data, memory, count);
        else
            memcpy(memory, task.data, count);
        task.data += count;
        task.left -= count;
        if (!task.left)
            advance();
        return count;
    case STATUS:
        *memory = task.status;
        bus.in[0] = 0x00, bus.in_length = 1; /* COMMAND COMPLETE */
        bus.ends = true;
        advance();
        return 1;
    case MESSAGE_IN:
        if (count > bus.in_length)
            count = bus.in_length;
        memcpy(memory, bus.in, count);
        bus.in_length -= count;
        memmove(bus.in, bus.in + count, bus.in_length);
        bus.acknowledge = !bus.in_length; /* what comes next is decided when the driver has seen it */
        return count;
    case MESSAGE_OUT:
        for (uint32_t at = 0; at < count && bus.out_length < MOST_MESSAGE; at++)
            bus.out[bus.out_length++] = memory[at];
        bus.attention = false;
        advance();
        return count;
    default: /* COMMAND; bytes behind its end are dropped */
        for (uint32_t at = 0; at < count && task.cdb_length < sizeof task.cdb; at++)
            task.cdb[task.cdb_length++] = memory[at];
        if (task.cdb_length >= cdb_length(task.cdb[0])) {
            carry_out();
            advance();
        }
        return count;
    }
}

/* ---- Reading and writing registers ---- */

void reset_chip(bool software)
{
    memset(&registers, 0, sizeof registers);
    BYTE(SCNTL0) = 0xC0;
    BYTE(SSTAT2) = 0x02;
    BYTE(CTEST1) = 0xF0;
    BYTE(GPCNTL) = 0x0F;
    BYTE(STEST4) = 0xE0;
    BYTE(ISTAT0) = software ? ISTAT_SRST : 0;
    memset(&bus, 0, sizeof bus);
    processor = STOPPED;
    carry = selecting = false;
    timer = 0;
    update_pin();
}

uint8_t read_register(uint8_t at)
{
    uint8_t value = BYTE(at);

    switch (at) {
    case SBCL:
        return bus.connected ? bus.phase | 0x20 | (bus.attention ? 0x08 : 0) | (bus.acknowledge ? 0x40 : 0x80) : 0;
    case SSTAT1:
        return bus.phase;
    case DSTAT:
        BYTE(DSTAT) = 0;
        status_read();
        return value | 0x80; /* the FIFO is empty */
    case ISTAT1:
        return value | (processor == STOPPED ? 0 : 0x02);
    case CTEST2:
        value = 0x31 | (value & 0x08) | (BYTE(ISTAT0) & ISTAT_SIGP ? 0x40 : 0);
        BYTE(ISTAT0) &= ~ISTAT_SIGP;
        return value;
    case CTEST3:
        return 0x10 | (value & 0x03);
    case DFIFO:
        return BYTE(DBC);
    case CTEST5:
        return (value & ~3) | (BYTE(DBC + 1) & 3);
    case SIST:
        if (timer && now() >= timer) { /* which drivers wait for by reading this */
            timer = 0;
            post_scsi(SCSI_GENERAL);
        }
        value = BYTE(SIST);
        /* fall through */
    case SIST + 1:
        BYTE(at) = 0;
        status_read();
        return value;
    default:
        return value;
    }
}

static bool is_read_only(uint8_t at)
{
    return (at >= 0x0A && at <= SSTAT2) || at == CTEST1 || at == DFIFO || (at >= 0x3C && at <= 0x3F) || at == SIST ||
           at == SIST + 1 || at == 0x45 || at == 0x4C || (at >= SIDL && at <= STEST4) || (at >= 0x58 && at <= 0x5B) ||
           (at >= SBC && at < CSBC);
}

void write_register(uint8_t at, uint8_t value)
{
    uint8_t old = BYTE(at);

    if (is_read_only(at))
        return;
    BYTE(at) = value;
    switch (at) {
    case SCNTL1:
        BYTE(at) = (value & ~0x10) | (old & 0x10);
        BYTE(SSTAT0) = value & 0x08 ? 0x02 : 0;
        if (value & ~old & 0x08) {
            bus_free(true);
            selecting = false;
            post_scsi(SCSI_RESET);
        }
        return;
    case SCNTL2:
        BYTE(at) = (value & ~0x09) | (old & ~value & 0x09);
        return;
    case ISTAT0:
        BYTE(at) = (value & 0xF0) | (old & 0x0B) | (old & ~value & ISTAT_INTF);
        if (value & ~old & ISTAT_SRST)
            reset_chip(true);
        else if (value & ~old & ISTAT_ABRT)
            post_dma(DMA_ABORTED);
        else if (value & ISTAT_SIGP && processor == WAITING)
            processor = RUNNING;
        update_pin();
        return;
    case DSP + 3:
        if (!(BYTE(DMODE) & 0x01)) {
            processor = RUNNING;
            selecting = false;
        }
        return;
    case DCNTL:
        BYTE(at) = value & ~0x44;
        if (value & 0x04)
            processor = RUNNING;
        update_pin();
        return;
    case ISTAT1:
    case DIEN:
    case SIEN:
    case SIEN + 1:
        update_pin();
        return;
    case CTEST3:
        BYTE(at) = value & 0x03;
        return;
    case STEST3:
        BYTE(at) = value & ~0x02;
        return;
    case STIME1: /* the times of a chip with a clock of 40 MHz, and longer rather than shorter */
        timer = value & 15 ? now() + (INT64_C(375000) << ((value & 15) - 1)) * (value & 0x10 ? 16 : 1) : 0;
    }
}

/* ---- SCRIPTS ---- */

enum { COUNT = 0xFFFFFF, SLICE = 2000, MOST_MOVED = 1 << 20 };

static uint32_t moved; /* bytes, in this slice */

static uint32_t sign_extend(uint32_t word)
{
    return ((word & COUNT) ^ 0x800000) - 0x800000;
}

static void wait(void)
{
    WORD(DSP) -= 8;
    processor = WAITING;
}

/* An instruction needs a target that is connected; false if there is none. */
static bool has_phase(void)
{
    if (bus.connected)
        return true;
    if (selecting) {
        selecting = false;
        post_scsi(SCSI_TIMEOUT);
    } else {
        wait();
    }
    return false;
}

static void mismatch(uint32_t first, uint32_t entry, uint32_t left)
{
    uint8_t control = BYTE(CCNTL0), wanted = first >> 24 & 7;
    bool second = control & 0x40 ? wanted & 1 : BYTE(SCNTL2) & 1;

    if (!(control & 0x80) || (wanted > DATA_IN && !(control & 0x20))) {
        post_scsi(SCSI_MISMATCH);
        return;
    }
    WORD(RBC) = ((first >> 28 & 1 ? entry : first) & ~COUNT) | left;
    WORD(UA) = WORD(DNAD);
    WORD(IA) = WORD(DSP) - 8;
    WORD(DSP) = WORD(second ? PMJAD2 : PMJAD1);
}

static void block_move(uint32_t first, uint32_t second)
{
    uint32_t count = first & COUNT, entry = 0, done, *words;
    uint64_t address = second;
    uint8_t wanted = first >> 24 & 7, *memory;

    if (!first) { /* not an instruction at all, but SeaBIOS has it in place of a data phase where there is none */
        WORD(DSP) -= 4;
        return;
    }
    if (first >> 28 & 1) { /* by table */
        WORD(ESA) = (WORD(DSA) + sign_extend(second)) & ~3;
        words = reach(WORD(ESA), 8);
        if (!words)
            return;
        entry = words[0];
        count = entry & COUNT;
        address = words[1];
        if ((BYTE(CCNTL1) & 0x06) == 0x06)
            address |= (uint64_t)(entry >> 24) << 32;
    } else if (first >> 29 & 1) { /* indirect */
        words = reach(second & ~3, 4);
        if (!words)
            return;
        address = *words;
    }
    if (!count) {
        post_dma(DMA_ILLEGAL);
        return;
    }
    clear_acknowledge();
    if (!has_phase())
        return;
    if (wanted == MESSAGE_OUT && bus.phase == COMMAND && !task.cdb_length)
        bus.phase = MESSAGE_OUT; /* of an initiator that selected without ATN, such as SeaBIOS */
    memory = reach(address, count);
    if (!memory)
        return;
    done = bus.phase == wanted ? move_bytes(memory, count) : 0;
    if (done && wanted != DATA_OUT)
        BYTE(SFBR) = memory[0];
    if (done && wanted & 1)
        BYTE(SIDL) = memory[done - 1];
    count -= done;
    address += done;
    moved += done;
    WORD(DBC) = (first & ~COUNT) | count;
    WORD(DNAD) = address;
    WORD(DNAD64) = address >> 32;
    WORD(SBC) = done;
    if (wanted <= DATA_IN)
        WORD(CSBC) += done;
    if (count && !bus.acknowledge)
        mismatch(first, entry, count);
}

static void bus_operation(uint32_t first, uint32_t second)
{
    uint8_t target = first >> 16 & 15, signals = first & 0x48;
    uint32_t other = first >> 26 & 1 ? WORD(DSP) + sign_extend(second) : second, *entry;
    bool sets = (first >> 27 & 7) == 3;

    switch (first >> 27 & 7) {
    case 0: /* SELECT */
        if (first >> 25 & 1) { /* by table */
            entry = reach((WORD(DSA) + sign_extend(first)) & ~3, 4);
            if (!entry)
                return;
            BYTE(SCNTL3) = *entry >> 24;
            BYTE(SXFER) = *entry >> 8;
            target = *entry >> 16 & 15;
        }
        BYTE(SDID) = target;
        clear_acknowledge();
        if (bus.connected)
            WORD(DSP) = other;
        else
            select_target(target, first >> 24 & 1);
        return;
    case 1: /* WAIT DISCONNECT */
        clear_acknowledge();
        if (bus.connected)
            wait();
        return;
    case 2: /* WAIT RESELECT */
        clear_acknowledge();
        if (bus.connected)
            return;
        if (BYTE(ISTAT0) & ISTAT_SIGP)
            WORD(DSP) = other;
        else
            wait();
        return;
    default: /* SET, CLEAR */
        BYTE(SOCL) = sets ? BYTE(SOCL) | signals : BYTE(SOCL) & ~signals;
        if (first >> 10 & 1)
            carry = sets;
        if (first >> 3 & 1) { /* ATN, which the target looks at before its next phase */
            bus.attention = sets && bus.connected;
            if (!sets && bus.phase == MESSAGE_OUT)
                advance();
        }
        if (first >> 6 & 1 && !sets)
            clear_acknowledge();
    }
}

static void write_by_script(uint8_t at, uint8_t value)
{
    if (at == SFBR)
        BYTE(SFBR) = value;
    else
        write_register(at, value);
}

static void register_move(uint32_t first)
{
    uint8_t kind = first >> 27 & 7, operation = first >> 24 & 7, at = (first >> 16 & 0x7F) | (first & 0x80);
    uint8_t data = first >> 23 & 1 ? BYTE(SFBR) : first >> 8;
    bool to_sfbr = kind == 6, is_read = kind != 5 && (operation || to_sfbr);
    uint32_t operand = kind == 5 ? BYTE(SFBR) : is_read ? read_register(at) : 0, result;

    switch (operation) {
    case 0:
        result = to_sfbr ? operand : data;
        break;
    case 1:
        result = operand << 1 | carry;
        carry = result >> 8;
        break;
    case 2:
        result = operand | data;
        break;
    case 3:
        result = operand ^ data;
        break;
    case 4:
        result = operand & data;
        break;
    case 5:
        result = operand >> 1 | carry << 7;
        carry = operand & 1;
        break;
    default:
        result = operand + data + (operation == 7 ? carry : 0);
        carry = result >> 8;
    }
    write_by_script(to_sfbr ? SFBR : at, result);
}

static void transfer_control(uint32_t first, uint32_t second)
{
    bool if_true = first >> 19 & 1, compares = first & 0x260000, holds = if_true || compares;

    if (first >> 16 & 1 && !has_phase())
        return;
    if (first >> 17 & 1)
        holds &= (bus.phase == (first >> 24 & 7)) == if_true;
    if (first >> 18 & 1)
        holds &= !((BYTE(SFBR) ^ first) & ~(first >> 8) & 0xFF) == if_true;
    if (first >> 21 & 1)
        holds &= carry == if_true;
    if (!holds)
        return;
    if (first >> 23 & 1)
        second = WORD(DSP) + sign_extend(second);
    switch (first >> 27 & 3) {
    case 1: /* CALL */
        WORD(TEMP) = WORD(DSP);
        /* fall through */
    case 0: /* JUMP */
        WORD(DSP) = second;
        return;
    case 2: /* RETURN */
        WORD(DSP) = WORD(TEMP);
        return;
    default: /* INT, INTFLY */
        if (first >> 20 & 1) {
            BYTE(ISTAT0) |= ISTAT_INTF;
            update_pin();
        } else {
            post_dma(DMA_INTERRUPT);
        }
    }
}

/* The driver looks at queues in memory while the chip does: words are read and written whole. */
static void copy(uint8_t *to, const uint8_t *from, uint8_t count)
{
    if (count == 4)
        *(volatile uint32_t *)to = *(const volatile uint32_t *)from;
    else
        memcpy(to, from, count);
}

static void load_store(uint32_t first, uint32_t second)
{
    uint8_t at = first >> 16, count = first & 7;
    uint32_t address = first >> 28 & 1 ? WORD(DSA) + sign_extend(second) : second;
    uint8_t *memory = reach(address, count), bytes[4] __attribute__((aligned(4)));

    if (count > 4 || !memory)
        return;
    if (first >> 24 & 1) {
        copy(bytes, memory, count);
        for (uint8_t index = 0; index < count; index++)
            write_by_script(at + index, bytes[index]);
    } else {
        for (uint8_t index = 0; index < count; index++)
            bytes[index] = read_register(at + index);
        copy(memory, bytes, count);
    }
}

static void memory_move(uint32_t count, uint32_t second)
{
    uint32_t *third = reach(WORD(DSP), 4);
    uint8_t *from = reach(second, count), *to = third ? reach(*third, count) : NULL;

    WORD(DSP) += 4;
    if (from && to)
        memmove(to, from, count);
}

bool chip_runs(void)
{
    return processor == RUNNING;
}

void run_chip(void)
{
    moved = 0;
    for (int left = SLICE; left && processor == RUNNING && moved < MOST_MOVED; left--) {
        uint32_t *words = reach(WORD(DSP) & ~3, 8), first, second;

        if (!words)
            return;
        first = WORD(DBC) = words[0];
        second = WORD(DSPS) = words[1];
        WORD(DSP) += 8;
        switch (first >> 29) {
        case 0:
        case 1:
            block_move(first, second);
            break;
        case 2:
        case 3:
            if ((first >> 27 & 7) < 5)
                bus_operation(first, second);
            else
                register_move(first);
            break;
        case 4:
            transfer_control(first, second);
            break;
        case 6:
            memory_move(first & COUNT, second);
            break;
        case 7:
            load_store(first, second);
            break;
        default:
            post_dma(DMA_ILLEGAL);
        }
    }
}
