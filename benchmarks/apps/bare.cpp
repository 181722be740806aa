// onnxruntime alone: load a graph, run it on one input again and again. MODEL INPUT.bin INPUT OUTPUT SIDES CALLS DTYPE
#include <onnxruntime_c_api.h>

#include "cost.h"

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

static const OrtApi *api = OrtGetApiBase()->GetApi(ORT_API_VERSION);

static void check(OrtStatus *status) {
    if (status != nullptr) {
        std::fprintf(stderr, "%s\n", api->GetErrorMessage(status));
        std::exit(1);
    }
}

static std::string read(const char *path) {
    std::ifstream file(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
}

int main(int, char **argv) {
    const std::string graph = read(argv[1]);
    std::string x = read(argv[2]);
    const ONNXTensorElementDataType dtype = std::string(argv[7]) == "int64" ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64
                                                                            : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    std::vector<int64_t> shape;
    std::istringstream sides(argv[5]);
    for (int64_t side = 0; sides >> side;) {
        shape.push_back(side);
    }
    OrtEnv *env = nullptr;
    OrtSessionOptions *options = nullptr;
    OrtSession *session = nullptr;
    OrtMemoryInfo *memory = nullptr;
    check(api->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "bare", &env));
    check(api->DisableTelemetryEvents(env));
    check(api->CreateSessionOptions(&options));
    check(api->SetIntraOpNumThreads(options, 1));
    check(api->SetInterOpNumThreads(options, 1));
    check(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
    check(api->CreateSessionFromArray(env, graph.data(), graph.size(), options, &session));
    const char *const from[] = {argv[3]}, *const to[] = {argv[4]};
    measure(std::atoi(argv[6]), [&] {
        OrtValue *given = nullptr, *output = nullptr;
        check(api->CreateTensorWithDataAsOrtValue(memory, &x[0], x.size(), shape.data(), shape.size(), dtype,
                                                  &given));
        const OrtValue *const inputs[] = {given};
        check(api->Run(session, nullptr, from, inputs, 1, to, 1, &output));
        void *data = nullptr;
        check(api->GetTensorMutableData(output, &data));
        const float first = static_cast<float *>(data)[0];
        api->ReleaseValue(output);
        api->ReleaseValue(given);
        return first;
    });
    return 0;
}
