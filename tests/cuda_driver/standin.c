/* A stand-in for the CUDA driver, for tests on machines without a GPU. It computes nothing and is no model of a GPU.
 *
 * "Device memory" is files in the directory STANDIN_CUDA_DIR, mapped. A file belongs to the process that holds a lock on
 * it; when that process is gone, the next cuInit removes the file, as the real driver's kernel part frees its memory.
 * What is copied asynchronously is copied when its stream is synchronised and not before, piece by piece, so that code
 * which forgets to synchronise, or to look twice, is found out. A handle opened by a process with the exporter's pid
 * gives error 201, as with the real driver. Environment variables set the rest:
 *
 *   STANDIN_CUDA_UUID    32 hexadecimal digits: which GPU this is
 *   STANDIN_CUDA_NAME    its name; a MIG slice's holds " MIG "
 *   STANDIN_CUDA_MEMORY  its bytes, shared by all processes of one STANDIN_CUDA_DIR
 *   STANDIN_CUDA_FAIL    errors to return: "cuIpcOpenMemHandle=205,cuMemAlloc=2"
 *   STANDIN_CUDA_HANG    a call that never returns
 *   STANDIN_CUDA_DELAY_MS  milliseconds before a call begins: "cuIpcOpenMemHandle=800"
 *   STANDIN_CUDA_PAUSE_US  microseconds to wait in the middle of each copy
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

typedef int CUresult;
typedef uint64_t CUdeviceptr;

enum {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500
};

#define PREFIX "standin-cuda-"
#define PIECE 4096

typedef struct Memory {
    struct Memory *next;
    char path[512];
    char *base;
    size_t size;
    int lock;   /* the locked file of an allocation of this process; -1: opened from another process's handle */
    int opened; /* how often */
    int exported;
} Memory;

typedef struct Copy {
    struct Copy *next;
    char *to;
    const char *from;
    size_t size;
    char staged[];
} Copy;

typedef struct {
    pthread_mutex_t lock;
    Copy *first, **last;
} Stream;

typedef struct {
    char magic[8];
    int32_t pid;
    unsigned char uuid[16];
    char name[36];
} Handle;
_Static_assert(sizeof(Handle) == 64, "a CUipcMemHandle has 64 bytes");

static pthread_mutex_t memory_lock = PTHREAD_MUTEX_INITIALIZER;
static Memory *memories;
static int initialized;
static int context;
static __thread int depth;
static __thread int capture_mode;

static const char *setting(const char *name, const char *otherwise)
{
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}

static const char *directory(void) { return setting("STANDIN_CUDA_DIR", "/dev/shm"); }

/* The number that a setting of the form "cuA=1,cuB=2" has for a call; 0 without one. */
static int number_of(const char *settings, const char *call)
{
    size_t length = strlen(call);
    for (const char *at = setting(settings, ""); (at = strstr(at, call)); at += length)
        if (at[length] == '=')
            return atoi(at + length + 1);
    return 0;
}

static CUresult fault(const char *call)
{
    if (!strcmp(setting("STANDIN_CUDA_HANG", ""), call))
        for (;;)
            pause();
    usleep(1000 * (useconds_t)number_of("STANDIN_CUDA_DELAY_MS", call));
    return number_of("STANDIN_CUDA_FAIL", call);
}

#define CALL(name)                          \
    do {                                    \
        if (!initialized)                   \
            return NOT_INITIALIZED;         \
        CUresult planned = fault(name);     \
        if (planned)                        \
            return planned;                 \
    } while (0)

#define CALL_IN_CONTEXT(name)               \
    CALL(name);                             \
    if (depth == 0)                         \
        return INVALID_CONTEXT

static void identity(unsigned char uuid[16])
{
    const char *digits = setting("STANDIN_CUDA_UUID", "57a4d1c0de0000000000000000000001");
    for (int i = 0; i < 16; i++) {
        unsigned byte = 0;
        sscanf(digits + 2 * i, "%2x", &byte);
        uuid[i] = (unsigned char)byte;
    }
}

static size_t total(void) { return strtoull(setting("STANDIN_CUDA_MEMORY", "268435456"), NULL, 10); }

/* Bytes of all files of the directory; with `sweep`, those of dead processes are removed first. */
static size_t taken(int sweep)
{
    size_t bytes = 0;
    DIR *entries = opendir(directory());
    if (!entries)
        return 0;
    for (struct dirent *entry; (entry = readdir(entries));) {
        char path[512];
        struct stat file;
        if (strncmp(entry->d_name, PREFIX, strlen(PREFIX)))
            continue;
        snprintf(path, sizeof path, "%s/%s", directory(), entry->d_name);
        int descriptor = open(path, O_RDONLY | O_CLOEXEC);
        if (descriptor < 0)
            continue;
        int dead = sweep && !flock(descriptor, LOCK_EX | LOCK_NB);
        if (dead)
            unlink(path);
        else if (!fstat(descriptor, &file))
            bytes += (size_t)file.st_size;
        close(descriptor);
    }
    closedir(entries);
    return bytes;
}

static Memory *find(CUdeviceptr pointer)
{
    for (Memory *memory = memories; memory; memory = memory->next)
        if (pointer >= (uintptr_t)memory->base && pointer < (uintptr_t)memory->base + memory->size)
            return memory;
    return NULL;
}

static void forget(Memory *memory)
{
    Memory **at = &memories;
    while (*at != memory)
        at = &(*at)->next;
    *at = memory->next;
    munmap(memory->base, memory->size);
    if (memory->lock >= 0) {
        unlink(memory->path);
        close(memory->lock);
    }
    free(memory);
}

__attribute__((destructor)) static void leave(void)
{
    for (Memory *memory = memories; memory; memory = memory->next)
        if (memory->lock >= 0)
            unlink(memory->path);
}

CUresult cuInit(unsigned flags)
{
    (void)flags;
    CUresult planned = fault("cuInit");
    if (planned)
        return planned;
    taken(1);
    initialized = 1;
    return SUCCESS;
}

CUresult cuDriverGetVersion(int *version) { return *version = 13000, SUCCESS; }

CUresult cuDeviceGet(int *device, int ordinal)
{
    CALL("cuDeviceGet");
    return ordinal == 0 ? (*device = 0, SUCCESS) : INVALID_DEVICE;
}

CUresult cuDeviceGetName(char *name, int length, int device)
{
    (void)device;
    CALL("cuDeviceGetName");
    snprintf(name, (size_t)length, "%s", setting("STANDIN_CUDA_NAME", "Stand-in GPU"));
    return SUCCESS;
}

CUresult cuDeviceGetUuid_v2(unsigned char *uuid, int device)
{
    (void)device;
    CALL("cuDeviceGetUuid");
    identity(uuid);
    return SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(void **found, int device)
{
    (void)device;
    CALL("cuDevicePrimaryCtxRetain");
    *found = &context;
    return SUCCESS;
}

CUresult cuCtxPushCurrent_v2(void *pushed)
{
    CALL("cuCtxPushCurrent");
    return pushed == &context ? (depth++, SUCCESS) : INVALID_CONTEXT;
}

CUresult cuCtxPopCurrent_v2(void **popped)
{
    CALL_IN_CONTEXT("cuCtxPopCurrent");
    depth--;
    *popped = &context;
    return SUCCESS;
}

CUresult cuThreadExchangeStreamCaptureMode(int *mode)
{
    CALL("cuThreadExchangeStreamCaptureMode");
    int before = capture_mode;
    capture_mode = *mode;
    *mode = before;
    return SUCCESS;
}

CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes)
{
    CALL_IN_CONTEXT("cuMemGetInfo");
    *total_bytes = total();
    *free_bytes = total() - taken(1);
    return SUCCESS;
}

CUresult cuMemAlloc_v2(CUdeviceptr *pointer, size_t size)
{
    static int number;
    CALL_IN_CONTEXT("cuMemAlloc");
    if (!size)
        return INVALID_VALUE;
    if (taken(0) + size > total())
        return OUT_OF_MEMORY;
    Memory *memory = calloc(1, sizeof *memory);
    pthread_mutex_lock(&memory_lock);
    do {
        snprintf(memory->path, sizeof memory->path, "%s/" PREFIX "%d-%d", directory(), getpid(), ++number);
        memory->lock = open(memory->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    } while (memory->lock < 0 && errno == EEXIST);
    memory->size = size;
    int failed = memory->lock < 0 || flock(memory->lock, LOCK_EX) || posix_fallocate(memory->lock, 0, (off_t)size);
    memory->base = failed ? MAP_FAILED : mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, memory->lock, 0);
    if (memory->base == MAP_FAILED) {
        if (memory->lock >= 0) {
            unlink(memory->path);
            close(memory->lock);
        }
        free(memory);
    } else {
        memory->next = memories;
        memories = memory;
        *pointer = (uintptr_t)memory->base;
        failed = 0;
    }
    pthread_mutex_unlock(&memory_lock);
    return failed ? OUT_OF_MEMORY : SUCCESS;
}

CUresult cuMemFree_v2(CUdeviceptr pointer)
{
    CALL_IN_CONTEXT("cuMemFree");
    pthread_mutex_lock(&memory_lock);
    Memory *memory = find(pointer);
    int known = memory && memory->lock >= 0 && (uintptr_t)memory->base == pointer;
    if (known && memory->exported) {
        fprintf(stderr, "stand-in CUDA driver: memory freed while exported, which is undefined\n");
        abort();
    }
    if (known)
        forget(memory);
    pthread_mutex_unlock(&memory_lock);
    return known ? SUCCESS : INVALID_VALUE;
}

CUresult cuIpcGetMemHandle(Handle *handle, CUdeviceptr pointer)
{
    CALL_IN_CONTEXT("cuIpcGetMemHandle");
    pthread_mutex_lock(&memory_lock);
    Memory *memory = find(pointer);
    int known = memory && memory->lock >= 0;
    if (known) {
        memset(handle, 0, sizeof *handle);
        memcpy(handle->magic, "STANDIN", 8);
        handle->pid = getpid();
        identity(handle->uuid);
        snprintf(handle->name, sizeof handle->name, "%s", strrchr(memory->path, '/') + 1);
        memory->exported = 1;
    }
    pthread_mutex_unlock(&memory_lock);
    return known ? SUCCESS : INVALID_VALUE;
}

CUresult cuIpcOpenMemHandle_v2(CUdeviceptr *pointer, Handle handle, unsigned flags)
{
    (void)flags;
    CALL_IN_CONTEXT("cuIpcOpenMemHandle");
    unsigned char uuid[16];
    char path[512];
    struct stat file;
    identity(uuid);
    if (memcmp(handle.magic, "STANDIN", 8))
        return INVALID_HANDLE;
    if (handle.pid == getpid())
        return INVALID_CONTEXT;
    if (memcmp(handle.uuid, uuid, sizeof uuid))
        return INVALID_DEVICE;
    snprintf(path, sizeof path, "%s/%.36s", directory(), handle.name);
    pthread_mutex_lock(&memory_lock);
    Memory *memory = memories;
    while (memory && (memory->lock >= 0 || strcmp(memory->path, path)))
        memory = memory->next;
    int descriptor = memory ? -1 : open(path, O_RDWR | O_CLOEXEC);
    if (descriptor >= 0 && !fstat(descriptor, &file) && file.st_size) {
        char *base = mmap(NULL, (size_t)file.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
        if (base != MAP_FAILED) {
            memory = calloc(1, sizeof *memory);
            *memory = (Memory){.next = memories, .base = base, .size = (size_t)file.st_size, .lock = -1};
            snprintf(memory->path, sizeof memory->path, "%s", path);
            memories = memory;
        }
    }
    if (descriptor >= 0)
        close(descriptor);
    if (memory) {
        memory->opened++;
        *pointer = (uintptr_t)memory->base;
    }
    pthread_mutex_unlock(&memory_lock);
    return memory ? SUCCESS : INVALID_HANDLE;
}

CUresult cuIpcCloseMemHandle(CUdeviceptr pointer)
{
    CALL_IN_CONTEXT("cuIpcCloseMemHandle");
    pthread_mutex_lock(&memory_lock);
    Memory *memory = find(pointer);
    int known = memory && memory->lock < 0;
    if (known && --memory->opened == 0)
        forget(memory);
    pthread_mutex_unlock(&memory_lock);
    return known ? SUCCESS : INVALID_VALUE;
}

CUresult cuStreamCreate(Stream **stream, unsigned flags)
{
    (void)flags;
    CALL_IN_CONTEXT("cuStreamCreate");
    *stream = calloc(1, sizeof **stream);
    pthread_mutex_init(&(*stream)->lock, NULL);
    (*stream)->last = &(*stream)->first;
    return SUCCESS;
}

static CUresult enqueue(Stream *stream, char *to, const char *from, size_t size, int stage)
{
    Copy *copy = calloc(1, sizeof *copy + (stage ? size : 0));
    if (stage)
        memcpy(copy->staged, from, size);
    copy->to = to;
    copy->from = stage ? copy->staged : from;
    copy->size = size;
    pthread_mutex_lock(&stream->lock);
    *stream->last = copy;
    stream->last = &copy->next;
    pthread_mutex_unlock(&stream->lock);
    return SUCCESS;
}

static int lies_in(CUdeviceptr pointer, size_t size)
{
    pthread_mutex_lock(&memory_lock);
    Memory *memory = find(pointer);
    int inside = memory && pointer + size <= (uintptr_t)memory->base + memory->size;
    pthread_mutex_unlock(&memory_lock);
    return inside;
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t size, Stream *stream)
{
    CALL_IN_CONTEXT("cuMemcpyHtoDAsync");
    return lies_in(to, size) ? enqueue(stream, (char *)(uintptr_t)to, from, size, 1) : INVALID_VALUE;
}

CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t size, Stream *stream)
{
    CALL_IN_CONTEXT("cuMemcpyDtoHAsync");
    return lies_in(from, size) ? enqueue(stream, to, (const char *)(uintptr_t)from, size, 0) : INVALID_VALUE;
}

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t size, Stream *stream)
{
    CALL_IN_CONTEXT("cuMemcpyDtoDAsync");
    int inside = lies_in(to, size) && lies_in(from, size);
    return inside ? enqueue(stream, (char *)(uintptr_t)to, (const char *)(uintptr_t)from, size, 0) : INVALID_VALUE;
}

CUresult cuStreamSynchronize(Stream *stream)
{
    CALL_IN_CONTEXT("cuStreamSynchronize");
    unsigned pause_us = (unsigned)atoi(setting("STANDIN_CUDA_PAUSE_US", "0"));
    pthread_mutex_lock(&stream->lock);
    for (Copy *copy; (copy = stream->first);) {
        size_t half = copy->size / 2 / PIECE * PIECE;
        for (size_t done = 0; done < copy->size; done += PIECE) {
            if (done == half && half && pause_us)
                usleep(pause_us);
            memcpy(copy->to + done, copy->from + done, copy->size - done < PIECE ? copy->size - done : PIECE);
            sched_yield();
        }
        stream->first = copy->next;
        free(copy);
    }
    stream->last = &stream->first;
    pthread_mutex_unlock(&stream->lock);
    return SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char **name)
{
    (void)error;
    return *name = "an error of the stand-in CUDA driver", SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text) { return cuGetErrorName(error, text); }

CUresult cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags, int *status)
{
    static const char *const suffixes[] = {"_v2", ""};
    (void)version;
    (void)flags;
    *function = NULL;
    for (int i = 0; i < 2 && !*function; i++) {
        char name[128];
        snprintf(name, sizeof name, "%s%s", symbol, suffixes[i]);
        *function = dlsym(RTLD_DEFAULT, name);
        if (!*function) {
            static void *self;
            self = self ? self : dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
            *function = self ? dlsym(self, name) : NULL;
        }
    }
    if (status)
        *status = *function ? 0 : 1;
    return *function ? SUCCESS : NOT_FOUND;
}
