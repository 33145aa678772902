// The operator cnv2_plugin.NativeStages(images, weights, program) of ONNX Runtime.
#include <atomic>
#include <chrono>
#include <climits>
#include <cstdio>
#include <mutex>
#include <new>
#include <set>
#include <string>
#include <thread>

#include "onnxruntime_api.h"
#include "run.h"

#if defined(_WIN32)
#define CNV2_EXPORT extern "C" __declspec(dllexport)
#else
#define CNV2_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

struct Api {
    const ort::Function* table;

    template <typename Result = ort::Status, typename... Arguments>
    Result call(ort::Position position, Arguments... arguments) const {
        using Type = Result(CNV2_ORT_CALL*)(Arguments...);
        return reinterpret_cast<Type>(table[position])(arguments...);
    }

    ort::Status failure(const char* message) const {
        return call<ort::Status, int, const char*>(ort::kCreateStatus, ort::kInvalidArgument, message);
    }

    // The exception that is being handled as a failure.
    ort::Status failure() const noexcept {
        return cnv2::tell_failure([this](const char* reason) {
            char message[512];
            std::snprintf(message, sizeof(message), "cnv2_plugin.NativeStages: %s", reason);
            return failure(message);
        });
    }

    // Turns a failure of the runtime into an exception.
    void check(ort::Status status) const {
        if (!status) return;
        char message[512];
        std::snprintf(message, sizeof(message), "%s", call<const char*, const void*>(ort::kGetErrorMessage, status));
        call<void, void*>(ort::kReleaseStatus, status);
        throw cnv2::Refusal(message);
    }
};

constexpr size_t kMostDimensions = 4;

struct Tensor {
    void* data = nullptr;
    int64_t shape[kMostDimensions] = {1, 1, 1, 1};

    int64_t count() const { return shape[0] * shape[1] * shape[2] * shape[3]; }
};

// An input of so many dimensions, at most kMostDimensions.
Tensor input(const Api& api, void* context, size_t index, const char* name, int type, size_t rank) {
    const void* value = nullptr;
    api.check(api.call<ort::Status, const void*, size_t, const void**>(ort::kKernelContextGetInput, context, index, &value));
    void* info = nullptr;
    api.check(api.call<ort::Status, const void*, void**>(ort::kGetTensorTypeAndShape, value, &info));
    int found = 0;
    size_t dims = 0;
    Tensor tensor;
    ort::Status status = api.call<ort::Status, const void*, int*>(ort::kGetTensorElementType, info, &found);
    if (!status) status = api.call<ort::Status, const void*, size_t*>(ort::kGetDimensionsCount, info, &dims);
    if (!status && dims == rank)
        status = api.call<ort::Status, const void*, int64_t*, size_t>(ort::kGetDimensions, info, tensor.shape, dims);
    api.call<void, void*>(ort::kReleaseTensorTypeAndShapeInfo, info);
    api.check(status);
    if (found != type || dims != rank)
        throw cnv2::Refusal(std::string(name) + " have another type or number of dimensions than the operator takes");
    api.check(api.call<ort::Status, void*, void**>(ort::kGetTensorMutableData, const_cast<void*>(value), &tensor.data));
    return tensor;
}

// Work handed to the threads of the session's operators.
struct Parallel {
    const Api& api;
    void* context;

    void run(const cnv2::Task& task, int64_t count) const {
        auto one = [](void* self, size_t index) {
            auto* given = static_cast<const cnv2::Task*>(self);
            given->run(given->self, int64_t(index));
        };
        using One = void(CNV2_ORT_CALL*)(void*, size_t);
        api.check(api.call<ort::Status, const void*, One, size_t, size_t, void*>(
            ort::kKernelContextParallelFor, context, One(one), size_t(count), size_t(count),
            const_cast<cnv2::Task*>(&task)));
    }

    cnv2::Executor executor(int64_t threads) {
        return {[](void* self, const cnv2::Task& task, int64_t count) { static_cast<const Parallel*>(self)->run(task, count); },
                this, threads};
    }

    // How many threads take part; the interface does not tell, so short tasks are counted by who ran them.
    int64_t threads() {
        int64_t most = std::thread::hardware_concurrency();
        if (most < 2) return 1;
        std::mutex mutex;
        std::set<std::thread::id> seen;
        auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(1);
        auto look = [&](int64_t) {
            std::unique_lock<std::mutex> lock(mutex);
            seen.insert(std::this_thread::get_id());
            while (int64_t(seen.size()) < most && std::chrono::steady_clock::now() < until) {
                lock.unlock();
                std::this_thread::yield();
                lock.lock();
            }
        };
        cnv2::parallel_for(executor(most), most, look);
        return int64_t(seen.size());
    }
};

// Threads that are busy elsewhere are not seen, so the first calls look again; the most that were seen count.
constexpr int kLooks = 3;

struct Kernel {
    Api api;
    std::atomic<int> looks{0};
    std::atomic<int64_t> threads{1};
    cnv2::Programs programs;

    int64_t seen_by(Parallel& parallel) {
        if (looks.load(std::memory_order_relaxed) < kLooks && looks.fetch_add(1) < kLooks) {
            int64_t now = parallel.threads(), before = threads;
            while (before < now && !threads.compare_exchange_weak(before, now)) {
            }
        }
        return threads;
    }
};

ort::Status CNV2_ORT_CALL create(const ort::CustomOp*, const ort::Function* api, const void*, void** kernel) {
    *kernel = new (std::nothrow) Kernel{{api}};
    return *kernel ? nullptr : Api{api}.failure("there is not enough memory for the native operators of cnv2_plugin");
}

void CNV2_ORT_CALL destroy(void* kernel) { delete static_cast<Kernel*>(kernel); }

ort::Status CNV2_ORT_CALL compute(void* self, void* context) {
    auto& kernel = *static_cast<Kernel*>(self);
    const Api& api = kernel.api;
    try {
        Tensor images = input(api, context, 0, "images", ort::kFloat, 4);
        Tensor weights = input(api, context, 1, "weights", ort::kFloat, 1);
        Tensor program = input(api, context, 2, "the words of a program", ort::kInt32, 1);
        auto* words = static_cast<const int32_t*>(program.data);
        auto allocate = [&](const cnv2::OutputShape& made) {
            int64_t shape[] = {images.shape[0], made.channels, made.height, made.width};
            void *value = nullptr, *data = nullptr;
            api.check(api.call<ort::Status, void*, size_t, const int64_t*, size_t, void**>(
                ort::kKernelContextGetOutput, context, 0, shape, 4, &value));
            api.check(api.call<ort::Status, void*, void**>(ort::kGetTensorMutableData, value, &data));
            return static_cast<float*>(data);
        };
        Parallel parallel{api, context};
        cnv2::Input given{static_cast<const float*>(images.data), images.shape[0], images.shape[1], images.shape[2],
                          images.shape[3]};
        auto checked = kernel.programs.get(words, program.count(), static_cast<const float*>(weights.data),
                                           weights.count(), given);
        cnv2::run(*checked, words, given, allocate, parallel.executor(kernel.seen_by(parallel)));
        return nullptr;
    } catch (...) {
        return api.failure();
    }
}

const ort::CustomOp custom_op = [] {
    ort::CustomOp made{};
    made.version = ort::kApiVersion;
    made.name = [](const ort::CustomOp*) { return "NativeStages"; };
    made.provider = [](const ort::CustomOp*) { return static_cast<const char*>(nullptr); };
    made.input_type = [](const ort::CustomOp*, size_t i) { return i == 2 ? ort::kInt32 : ort::kFloat; };
    made.input_count = [](const ort::CustomOp*) { return size_t(3); };
    made.output_type = [](const ort::CustomOp*, size_t) { return ort::kFloat; };
    made.output_count = [](const ort::CustomOp*) { return size_t(1); };
    made.destroy = destroy;
    auto zero = [](const ort::CustomOp*, size_t) { return 0; };
    made.input_characteristic = made.output_characteristic = made.input_memory = zero;
    auto one = [](const ort::CustomOp*) { return 1; };
    made.variadic_input_least = made.variadic_input_homogeneous = one;
    made.variadic_output_least = made.variadic_output_homogeneous = one;
    made.create_kernel_v2 = create;
    made.compute_v2 = compute;
    made.start_version = one;
    made.end_version = [](const ort::CustomOp*) { return INT_MAX; };
    return made;
}();

}  // namespace

// Called by ONNX Runtime when a session's options register this library.
CNV2_EXPORT ort::Status CNV2_ORT_CALL RegisterCustomOps(void* options, const ort::ApiBase* base) {
    const ort::Function* table = base->get_api(ort::kApiVersion);
    if (!table) {
        // Version 1 of the table is part of every runtime.
        char message[128];
        std::snprintf(message, sizeof(message),
                      "the native operators of cnv2_plugin need ONNX Runtime 1.17 or newer, but this is %s",
                      base->version_string());
        return Api{base->get_api(1)}.failure(message);
    }
    Api api{table};
    try {
        void* domain = nullptr;
        api.check(api.call<ort::Status, const char*, void**>(ort::kCreateCustomOpDomain, "cnv2_plugin", &domain));
        api.check(api.call<ort::Status, void*, const ort::CustomOp*>(ort::kCustomOpDomainAdd, domain, &custom_op));
        api.check(api.call<ort::Status, void*, void*>(ort::kAddCustomOpDomain, options, domain));
        return nullptr;
    } catch (...) {
        return api.failure();
    }
}
