/* One image through a deployed file, in C or C++: cc classify.c -lonnxruntime -o classify
   classify MODEL.onnx IMAGE C H W [LIBRARY]: IMAGE holds prepared float32 values, LIBRARY is ours, for native files. */
#include <onnxruntime_c_api.h>
#include <stdio.h>
#include <stdlib.h>

static const OrtApi *ort;

static void check(OrtStatus *status) {
    if (!status) return;
    fprintf(stderr, "%s\n", ort->GetErrorMessage(status));
    exit(1);
}

int main(int argc, char **argv) {
    if (argc < 6) return 2;
    ort = OrtGetApiBase()->GetApi(17);
    int64_t shape[4] = {1, atoi(argv[3]), atoi(argv[4]), atoi(argv[5])};
    size_t count = (size_t)(shape[1] * shape[2] * shape[3]);
    float *image = (float *)malloc(count * sizeof(float));
    FILE *file = fopen(argv[2], "rb");
    if (!image || !file || fread(image, sizeof(float), count, file) != count) return 2;
    fclose(file);

    OrtEnv *env;
    OrtSessionOptions *options;
    OrtSession *session;
    check(ort->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "classify", &env));
    check(ort->CreateSessionOptions(&options));
    check(ort->SetIntraOpNumThreads(options, 1));
    if (argc > 6) check(ort->RegisterCustomOpsLibrary_V2(options, argv[6]));
    check(ort->CreateSession(env, argv[1], options, &session));

    OrtMemoryInfo *memory;
    OrtValue *input, *output = NULL;
    OrtTensorTypeAndShapeInfo *info;
    const char *inputs[] = {"input"}, *outputs[] = {"logits"};
    float *logits;
    size_t classes;
    check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
    check(ort->CreateTensorWithDataAsOrtValue(memory, image, count * sizeof(float), shape, 4,
                                              ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &input));
    check(ort->Run(session, NULL, inputs, (const OrtValue *const *)&input, 1, outputs, 1, &output));
    check(ort->GetTensorTypeAndShape(output, &info));
    check(ort->GetTensorShapeElementCount(info, &classes));
    check(ort->GetTensorMutableData(output, (void **)&logits));
    for (size_t i = 0; i < classes; i++) printf("%.9g\n", logits[i]);

    ort->ReleaseTensorTypeAndShapeInfo(info);
    ort->ReleaseValue(output);
    ort->ReleaseValue(input);
    ort->ReleaseMemoryInfo(memory);
    ort->ReleaseSession(session);
    ort->ReleaseSessionOptions(options);
    ort->ReleaseEnv(env);
    free(image);
    return 0;
}
