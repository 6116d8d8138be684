// The driver: cards whose memory is the host's, between pages that nobody may touch. What is asked for on a stream happens
// when somebody waits for it, no sooner, so that results that are read too early are seen to be missing.

#include "emulated.hpp"

#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <map>
#include <memory>
#include <mutex>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

namespace {

using emulated::Kernel;

constexpr int SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
              INVALID_IMAGE = 200, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700,
              LAUNCH_FAILED = 719;

// What memory holds before it is written: no number in any of the types.
constexpr int POISON = 0xff;

// Operations that wait on a stream at most.
constexpr size_t MAX_WAITING = 4096;

struct Allocation {
    unsigned char *base;
    size_t mapped, bytes;
    int device;
};

struct Operation {
    std::string name;
    std::function<void()> run;
};

struct Card;

struct Stream {
    Card *card;
    std::deque<Operation> waiting;
};

struct Module {
    Card *card;
    void *library;
    std::map<std::string, std::unique_ptr<Kernel>> kernels;
};

struct Card {
    int ordinal = 0;
    int retained = 0;
    // The first error of the context: everything after it fails with it, as on a card.
    int lost = SUCCESS;
    size_t used = 0;
    std::vector<std::unique_ptr<Stream>> streams;
};

std::recursive_mutex everything;
bool ready = false;
// Never destroyed: threads of the program may still give things back while it ends.
std::vector<std::unique_ptr<Card>> &cards = *new std::vector<std::unique_ptr<Card>>;
// By address on the card.
std::map<uint64_t, Allocation> &allocations = *new std::map<uint64_t, Allocation>;
size_t memory_bytes = 0, shared_bytes = 0, capability = 0, host_pages = 0;
thread_local Card *current = nullptr;

sigjmp_buf on_fault;
volatile sig_atomic_t computing = 0;
const Operation *running = nullptr;
struct sigaction before_segv, before_bus, before_ill;

size_t page() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

void say(const std::string &text) {
    std::string line = "emulated card: " + text + "\n";
    if (write(2, line.data(), line.size()) < 0) abort();
}

size_t number(const char *name, size_t otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtoull(text, nullptr, 10) : otherwise;
}

// --- faults -------------------------------------------------------------------------------------------------------------

void tell_fault(int signal, const void *address) {
    std::string text = running ? running->name : "";
    std::string place = emulated::where();
    if (!place.empty()) text = place;
    if (signal == SIGILL) {
        say(text + ": an address that is not aligned for what is read or written");
        return;
    }
    auto at = reinterpret_cast<uint64_t>(address);
    char hex[32];
    snprintf(hex, sizeof hex, "%#llx", static_cast<unsigned long long>(at));
    text += ": no memory at " + std::string(hex);
    auto after = allocations.upper_bound(at);
    if (after != allocations.begin()) {
        auto &[start, allocation] = *std::prev(after);
        auto offset = at - start;
        if (offset < allocation.bytes + (64u << 10))
            text += ", byte " + std::to_string(offset) + " of a buffer of " + std::to_string(allocation.bytes) + " on card " +
                    std::to_string(allocation.device);
    }
    if (after != allocations.end() && after->first - at < (64u << 10))
        text += ", " + std::to_string(after->first - at) + " bytes before a buffer of " + std::to_string(after->second.bytes);
    say(text);
}

void fault(int signal, siginfo_t *info, void *context) {
    if (computing) {
        tell_fault(signal, info->si_addr);
        siglongjmp(on_fault, 1);
    }
    const auto &before = signal == SIGSEGV ? before_segv : signal == SIGBUS ? before_bus : before_ill;
    if (before.sa_flags & SA_SIGINFO) {
        before.sa_sigaction(signal, info, context);
    } else if (before.sa_handler == SIG_DFL || before.sa_handler == SIG_IGN) {
        sigaction(signal, &before, nullptr);
    } else {
        before.sa_handler(signal);
    }
}

// Fibers have small stacks, and a thread of the host may have no other.
void ensure_alternate_stack() {
    stack_t stack{};
    if (sigaltstack(nullptr, &stack) == 0 && !(stack.ss_flags & SS_DISABLE) && stack.ss_size >= (32u << 10)) return;
    static thread_local std::unique_ptr<unsigned char[]> memory;
    memory.reset(new unsigned char[64 << 10]);
    stack = {};
    stack.ss_sp = memory.get();
    stack.ss_size = 64 << 10;
    sigaltstack(&stack, nullptr);
}

void catch_faults() {
    struct sigaction action {};
    action.sa_sigaction = fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigemptyset(&action.sa_mask);
    sigaction(SIGSEGV, &action, &before_segv);
    sigaction(SIGBUS, &action, &before_bus);
    sigaction(SIGILL, &action, &before_ill);
}

// --- memory -------------------------------------------------------------------------------------------------------------

void check_ends(const char *when) {
    for (auto &[address, allocation] : allocations) {
        auto *end = reinterpret_cast<unsigned char *>(address) + allocation.bytes;
        for (size_t i = 0; (reinterpret_cast<uint64_t>(end) + i) % 16 != 0; i++) {
            if (end[i] == POISON) continue;
            say(std::string(when) + ": something was written behind a buffer of " + std::to_string(allocation.bytes) + " bytes");
            abort();
        }
    }
}

// Whether a card's memory can be reached: the one that computes must not touch another's.
void show_memory(const Card *card, bool all) {
    if (cards.size() < 2) return;
    for (auto &[address, allocation] : allocations) {
        bool visible = all || allocation.device == card->ordinal;
        mprotect(allocation.base + page(), allocation.mapped - 2 * page(), visible ? PROT_READ | PROT_WRITE : PROT_NONE);
    }
}

// What a card that is lost had is gone with its context.
void forget(Card *card) {
    for (auto it = allocations.begin(); it != allocations.end();) {
        auto &allocation = it->second;
        if (allocation.device != card->ordinal) {
            ++it;
            continue;
        }
        munmap(allocation.base, allocation.mapped);
        it = allocations.erase(it);
    }
    card->used = 0;
    card->streams.clear();
}

// --- streams ------------------------------------------------------------------------------------------------------------

int perform(Card *card, Operation &operation) {
    running = &operation;
    int status = SUCCESS;
    if (sigsetjmp(on_fault, 1) == 0) {
        computing = 1;
        operation.run();
    } else {
        status = ILLEGAL_ADDRESS;
    }
    computing = 0;
    running = nullptr;
    if (status != SUCCESS) card->lost = status;
    return card->lost;
}

int finish(Stream *stream) {
    auto *card = stream->card;
    if (stream->waiting.empty()) return card->lost;
    ensure_alternate_stack();
    show_memory(card, false);
    while (!stream->waiting.empty()) {
        Operation operation = std::move(stream->waiting.front());
        stream->waiting.pop_front();
        if (card->lost == SUCCESS && perform(card, operation) == SUCCESS) check_ends(operation.name.c_str());
    }
    show_memory(card, true);
    return card->lost;
}

int finish(Card *card) {
    for (auto &stream : card->streams) finish(stream.get());
    return card->lost;
}

int enqueue(Stream *stream, std::string name, std::function<void()> run) {
    if (!stream) {
        say(name + " on no stream, which is not emulated");
        return INVALID_HANDLE;
    }
    if (stream->card != current) {
        say(name + " on a stream of another card than the current one");
        return INVALID_CONTEXT;
    }
    if (stream->card->lost != SUCCESS) return stream->card->lost;
    stream->waiting.push_back({std::move(name), std::move(run)});
    return stream->waiting.size() < MAX_WAITING ? SUCCESS : finish(stream);
}

}  // namespace

#define LOCK std::lock_guard<std::recursive_mutex> lock(everything)
#define NEEDS_CONTEXT \
    LOCK;             \
    if (!current) return INVALID_CONTEXT

extern "C" {

int emulated_enqueue(void *stream, const std::function<void()> *operation, const char *name) {
    NEEDS_CONTEXT;
    return enqueue(static_cast<Stream *>(stream), name, *operation);
}

int cuInit(unsigned flags) {
    LOCK;
    if (flags != 0) return INVALID_VALUE;
    size_t n_cards = number("EMULATED_CARDS", 1);
    if (n_cards == 0) return NO_DEVICE;
    if (ready) return SUCCESS;
    memory_bytes = number("EMULATED_MEMORY", size_t(1) << 30);
    shared_bytes = number("EMULATED_SHARED", 99 << 10);
    host_pages = number("EMULATED_HOST_PAGES", 0);
    capability = number("EMULATED_CAPABILITY", 80);
    for (size_t i = 0; i < n_cards; i++) {
        cards.push_back(std::make_unique<Card>());
        cards.back()->ordinal = static_cast<int>(i);
    }
    catch_faults();
    ready = true;
    return SUCCESS;
}

int cuDriverGetVersion(int *version) { return *version = 13000, SUCCESS; }

int cuGetErrorName(int error, const char **name) {
    static const std::map<int, const char *> names = {
        {SUCCESS, "CUDA_SUCCESS"},
        {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
        {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
        {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED"},
        {NO_DEVICE, "CUDA_ERROR_NO_DEVICE"},
        {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE"},
        {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE"},
        {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"},
        {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE"},
        {NOT_FOUND, "CUDA_ERROR_NOT_FOUND"},
        {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"},
        {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED"},
    };
    auto found = names.find(error);
    if (found == names.end()) return INVALID_VALUE;
    *name = found->second;
    return SUCCESS;
}

int cuDeviceGetCount(int *count) {
    if (!ready) return NOT_INITIALIZED;
    return *count = static_cast<int>(cards.size()), SUCCESS;
}

int cuDeviceGet(int *device, int ordinal) {
    if (!ready) return NOT_INITIALIZED;
    if (ordinal < 0 || static_cast<size_t>(ordinal) >= cards.size()) return INVALID_DEVICE;
    return *device = ordinal, SUCCESS;
}

int cuDeviceGetName(char *name, int length, int device) {
    snprintf(name, static_cast<size_t>(length), "Emulated card %d", device);
    return SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    if (!ready) return NOT_INITIALIZED;
    if (device < 0 || static_cast<size_t>(device) >= cards.size()) return INVALID_DEVICE;
    switch (attribute) {
        case 16:  // multiprocessors
            return *value = 4, SUCCESS;
        case 75:  // compute capability
            return *value = static_cast<int>(capability / 10), SUCCESS;
        case 76:
            return *value = static_cast<int>(capability % 10), SUCCESS;
        case 97:  // shared memory of a block that asks for more than usual
            return *value = static_cast<int>(shared_bytes), SUCCESS;
        case 100:  // whether it reads the host's memory by the host's page tables
            return *value = static_cast<int>(host_pages), SUCCESS;
        default:
            say("attribute " + std::to_string(attribute) + " is not emulated");
            return INVALID_VALUE;
    }
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    LOCK;
    if (!ready) return NOT_INITIALIZED;
    if (device < 0 || static_cast<size_t>(device) >= cards.size()) return INVALID_DEVICE;
    cards[device]->retained++;
    *context = cards[device].get();
    return SUCCESS;
}

int cuDevicePrimaryCtxRelease_v2(int device) {
    LOCK;
    auto *card = cards.at(device).get();
    if (card->retained == 0) return INVALID_CONTEXT;
    if (--card->retained > 0) return SUCCESS;
    if (finish(card) != SUCCESS) forget(card);
    check_ends("at the end");
    for (auto &[address, allocation] : allocations) {
        if (allocation.device != device) continue;
        say("a buffer of " + std::to_string(allocation.bytes) + " bytes was never freed");
        abort();
    }
    if (!card->streams.empty()) {
        say("a stream was never destroyed");
        abort();
    }
    card->lost = SUCCESS;
    return SUCCESS;
}

int cuCtxSetCurrent(void *context) {
    current = static_cast<Card *>(context);
    return SUCCESS;
}

int cuStreamCreate(void **stream, unsigned) {
    NEEDS_CONTEXT;
    if (current->lost != SUCCESS) return current->lost;
    current->streams.push_back(std::make_unique<Stream>());
    current->streams.back()->card = current;
    *stream = current->streams.back().get();
    return SUCCESS;
}

int cuStreamSynchronize(void *stream) {
    NEEDS_CONTEXT;
    return stream ? finish(static_cast<Stream *>(stream)) : INVALID_HANDLE;
}

int cuStreamDestroy_v2(void *stream) {
    NEEDS_CONTEXT;
    finish(static_cast<Stream *>(stream));
    auto &streams = current->streams;
    for (auto it = streams.begin(); it != streams.end(); ++it) {
        if (it->get() != stream) continue;
        streams.erase(it);
        return current->lost;
    }
    return INVALID_HANDLE;
}

int cuMemGetInfo_v2(size_t *free, size_t *total) {
    NEEDS_CONTEXT;
    *total = memory_bytes;
    *free = memory_bytes - current->used;
    return current->lost;
}

int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    NEEDS_CONTEXT;
    if (current->lost != SUCCESS) return current->lost;
    if (bytes == 0) return INVALID_VALUE;
    if (bytes > memory_bytes - current->used) return OUT_OF_MEMORY;
    // The end lies against a page that cannot be touched, the start less than a page behind one.
    size_t padded = (bytes + 15) / 16 * 16;
    size_t inside = (padded + page() - 1) / page() * page();
    size_t mapped = inside + 2 * page();
    void *base = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) return OUT_OF_MEMORY;
    auto *start = static_cast<unsigned char *>(base);
    memset(start + page(), POISON, inside);
    mprotect(start, page(), PROT_NONE);
    mprotect(start + page() + inside, page(), PROT_NONE);
    *address = reinterpret_cast<uint64_t>(start + page() + inside - padded);
    allocations[*address] = {start, mapped, bytes, current->ordinal};
    current->used += bytes;
    return SUCCESS;
}

int cuMemFree_v2(uint64_t address) {
    NEEDS_CONTEXT;
    auto found = allocations.find(address);
    if (found == allocations.end()) {
        say("freeing what is not allocated");
        abort();
    }
    // As the driver, which waits for everything before memory is gone.
    auto *card = cards[found->second.device].get();
    finish(card);
    check_ends("freeing");
    card->used -= found->second.bytes;
    munmap(found->second.base, found->second.mapped);
    allocations.erase(found);
    return card->lost;
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    NEEDS_CONTEXT;
    if (host_pages) {
        return enqueue(static_cast<Stream *>(stream), "a copy to the card",
                       [=] { memcpy(reinterpret_cast<void *>(to), from, bytes); });
    }
    // Taken now: what is not page-locked may be used again at once.
    auto copy = std::make_shared<std::vector<unsigned char>>(static_cast<const unsigned char *>(from),
                                                             static_cast<const unsigned char *>(from) + bytes);
    return enqueue(static_cast<Stream *>(stream), "a copy to the card",
                   [=] { memcpy(reinterpret_cast<void *>(to), copy->data(), bytes); });
}

int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
    NEEDS_CONTEXT;
    return enqueue(static_cast<Stream *>(stream), "a copy from the card",
                   [=] { memcpy(to, reinterpret_cast<const void *>(from), bytes); });
}

int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
    NEEDS_CONTEXT;
    return enqueue(static_cast<Stream *>(stream), "a copy on the card",
                   [=] { memmove(reinterpret_cast<void *>(to), reinterpret_cast<const void *>(from), bytes); });
}

int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *stream) {
    NEEDS_CONTEXT;
    return enqueue(static_cast<Stream *>(stream), "filling memory",
                   [=] { memset(reinterpret_cast<void *>(to), value, bytes); });
}

// What the emulated compiler made: a word, the length, and a shared library.
int cuModuleLoadData(void **module, const void *image) {
    NEEDS_CONTEXT;
    auto *bytes = static_cast<const unsigned char *>(image);
    if (memcmp(bytes, "EMULATED", 8) != 0) return INVALID_IMAGE;
    uint64_t length;
    memcpy(&length, bytes + 8, 8);
    // A file of its own for each: the loader takes two of one name for the same.
    const char *temporary = getenv("TMPDIR");
    std::string path = std::string(temporary && *temporary ? temporary : "/tmp") + "/emulated-kernels-XXXXXX";
    int file = mkstemp(path.data());
    if (file < 0) return OUT_OF_MEMORY;
    for (uint64_t done = 0; done < length;) {
        auto n = write(file, bytes + 16 + done, length - done);
        if (n <= 0) return OUT_OF_MEMORY;
        done += static_cast<uint64_t>(n);
    }
    close(file);
    auto loaded = std::make_unique<Module>();
    loaded->library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    unlink(path.c_str());
    if (!loaded->library) {
        say(std::string("loading kernels: ") + dlerror());
        return INVALID_IMAGE;
    }
    loaded->card = current;
    *module = loaded.release();
    return SUCCESS;
}

int cuModuleUnload(void *module) {
    NEEDS_CONTEXT;
    auto *loaded = static_cast<Module *>(module);
    finish(loaded->card);
    dlclose(loaded->library);
    delete loaded;
    return SUCCESS;
}

int cuModuleGetFunction(void **function, void *module, const char *name) {
    NEEDS_CONTEXT;
    auto *loaded = static_cast<Module *>(module);
    auto &kernel = loaded->kernels[name];
    if (!kernel) {
        auto call = dlsym(loaded->library, (std::string("emulated_call_") + name).c_str());
        auto sizes = dlsym(loaded->library, (std::string("emulated_sizes_") + name).c_str());
        if (!call || !sizes) return NOT_FOUND;
        kernel = std::make_unique<Kernel>();
        kernel->name = name;
        kernel->call = reinterpret_cast<void (*)(void **)>(call);
        kernel->sizes = reinterpret_cast<const size_t *(*)()>(sizes)();
    }
    *function = kernel.get();
    return SUCCESS;
}

int cuFuncSetAttribute(void *function, int attribute, int value) {
    NEEDS_CONTEXT;
    if (attribute != 8 || value < 0 || static_cast<size_t>(value) > shared_bytes) return INVALID_VALUE;
    static_cast<Kernel *>(function)->max_shared = static_cast<unsigned>(value);
    return SUCCESS;
}

int cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared_bytes, void *stream, void **arguments, void **extra) {
    NEEDS_CONTEXT;
    auto *kernel = static_cast<Kernel *>(function);
    if (extra || grid_x == 0 || grid_y == 0 || grid_z == 0 || grid_x > 0x7fffffffu || grid_y > 65535 || grid_z > 65535) {
        say("kernel " + kernel->name + ": a grid that no card has");
        return INVALID_VALUE;
    }
    if (block_x * block_y * block_z == 0 || block_x * block_y * block_z > 1024 || shared_bytes > kernel->max_shared) {
        say("kernel " + kernel->name + ": more threads or shared memory than a block has");
        return INVALID_VALUE;
    }
    // Arguments are copied now, as the driver does.
    struct Copies {
        std::vector<std::vector<unsigned char>> values;
        std::vector<void *> pointers;
    };
    auto copies = std::make_shared<Copies>();
    for (size_t i = 0; kernel->sizes[i] != 0; i++) {
        auto *value = static_cast<unsigned char *>(arguments[i]);
        if (!value) {
            say("kernel " + kernel->name + ": too few arguments");
            return INVALID_VALUE;
        }
        copies->values.emplace_back(value, value + kernel->sizes[i]);
    }
    for (auto &value : copies->values) copies->pointers.push_back(value.data());
    auto *card = current;
    return enqueue(static_cast<Stream *>(stream), "kernel " + kernel->name, [=] {
        emulated::Launch launch{kernel, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes, copies->pointers.data()};
        auto wrong = emulated::run(launch);
        if (wrong.empty()) return;
        say(wrong);
        card->lost = LAUNCH_FAILED;
    });
}

}  // extern "C"
