// The part of ONNX Runtime's C interface that a custom operator needs, declared by its layout: the runtime hands out a
// table of functions to which versions only ever append, so a position once taken stays. (No package of the registries
// ships the runtime's own headers.)
#pragma once

#include <cstddef>
#include <cstdint>

namespace ort {

#if defined(_WIN32)
#define CNV2_ORT_CALL __stdcall
#else
#define CNV2_ORT_CALL
#endif

constexpr uint32_t kApiVersion = 17;  // of ONNX Runtime 1.17, the first with everything used here
constexpr int kFloat = 1, kInt32 = 6;
constexpr int kInvalidArgument = 2;

using Status = void*;
using Function = void*;

enum Position {
    kCreateStatus = 0,
    kGetErrorMessage = 2,
    kCreateCustomOpDomain = 26,
    kCustomOpDomainAdd = 27,
    kAddCustomOpDomain = 28,
    kGetTensorMutableData = 51,
    kGetTensorElementType = 60,
    kGetDimensionsCount = 61,
    kGetDimensions = 62,
    kGetTensorTypeAndShape = 65,
    kKernelContextGetInput = 90,
    kKernelContextGetOutput = 91,
    kReleaseStatus = 93,
    kReleaseTensorTypeAndShapeInfo = 99,
    kKernelContextParallelFor = 274,
};

struct ApiBase {
    const Function*(CNV2_ORT_CALL* get_api)(uint32_t version);
    const char*(CNV2_ORT_CALL* version_string)();
};

struct CustomOp {
    uint32_t version;
    void*(CNV2_ORT_CALL* create_kernel)(const CustomOp*, const Function* api, const void* info);
    const char*(CNV2_ORT_CALL* name)(const CustomOp*);
    const char*(CNV2_ORT_CALL* provider)(const CustomOp*);
    int(CNV2_ORT_CALL* input_type)(const CustomOp*, size_t);
    size_t(CNV2_ORT_CALL* input_count)(const CustomOp*);
    int(CNV2_ORT_CALL* output_type)(const CustomOp*, size_t);
    size_t(CNV2_ORT_CALL* output_count)(const CustomOp*);
    void(CNV2_ORT_CALL* compute)(void* kernel, void* context);
    void(CNV2_ORT_CALL* destroy)(void* kernel);
    int(CNV2_ORT_CALL* input_characteristic)(const CustomOp*, size_t);
    int(CNV2_ORT_CALL* output_characteristic)(const CustomOp*, size_t);
    int(CNV2_ORT_CALL* input_memory)(const CustomOp*, size_t);
    int(CNV2_ORT_CALL* variadic_input_least)(const CustomOp*);
    int(CNV2_ORT_CALL* variadic_input_homogeneous)(const CustomOp*);
    int(CNV2_ORT_CALL* variadic_output_least)(const CustomOp*);
    int(CNV2_ORT_CALL* variadic_output_homogeneous)(const CustomOp*);
    Status(CNV2_ORT_CALL* create_kernel_v2)(const CustomOp*, const Function*, const void*, void**);
    Status(CNV2_ORT_CALL* compute_v2)(void* kernel, void* context);
    Status(CNV2_ORT_CALL* infer_shape)(const CustomOp*, void*);
    int(CNV2_ORT_CALL* start_version)(const CustomOp*);
    int(CNV2_ORT_CALL* end_version)(const CustomOp*);
    void* later[4];  // not read for this version
};

}  // namespace ort
