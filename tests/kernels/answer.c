// What a library of the kernels, loaded by its path, gives for a case (see case.h). Plain C: it is compiled for other machines.
// Arguments: the library, the case, the number of threads, the file for the result.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef int32_t Run(const int32_t*, int64_t, const float*, int64_t, const float*, int64_t, int64_t, int64_t, int64_t, float*,
                    const int64_t*, int64_t, char*, int64_t);

static FILE* file;

static void* words(int64_t count) {
    void* data = malloc(4 * count);
    if (!data || fread(data, 4, count, file) != (size_t)count) exit(2);
    return data;
}

int main(int count, char** arguments) {
    if (count != 5 || !(file = fopen(arguments[2], "rb"))) return 2;
    void* library = dlopen(arguments[1], RTLD_NOW);
    if (!library) return puts(dlerror()), 4;
    Run* run = (Run*)dlsym(library, "cnv2_run");
    int32_t* head = words(9);
    int32_t* program = words(head[0]);
    float* weights = words(head[1]);
    float* images = words((int64_t)head[2] * head[3] * head[4] * head[5]);
    int64_t shape[] = {head[6], head[7], head[8]}, floats = head[2] * shape[0] * shape[1] * shape[2];
    float* result = malloc(4 * floats);
    char message[512];
    if (run(program, head[0], weights, head[1], images, head[2], head[3], head[4], head[5], result, shape, atoi(arguments[3]),
            message, sizeof(message)))
        return puts(message), 3;
    FILE* out = fopen(arguments[4], "wb");
    return out && fwrite(result, 4, floats, out) == (size_t)floats && !fclose(out) ? 0 : 5;
}
