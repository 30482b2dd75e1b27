// OpenVINO on the CPU: one lane is one infer request.
#ifndef REPRISE_DEVICE_OPENVINO_H_
#define REPRISE_DEVICE_OPENVINO_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "reprise/lane.h"

namespace reprise {

struct OpenVinoOptions {
  std::string model_path;  // ONNX or OpenVINO IR
  // Names of the inputs and outputs, in the order the device shall declare them.
  std::vector<std::string> input_names;
  std::vector<std::string> output_names;
  // OpenVINO properties by name. INFERENCE_PRECISION_HINT is f32 and ENABLE_CPU_PINNING is NO
  // unless given here: OpenVINO's own default is bf16 on new CPUs, and pinned threads of several
  // engines would fight for the same cores.
  std::map<std::string, std::string> properties;
  std::size_t lane_count = 0;  // 0: as many as OpenVINO calls optimal for its streams
};

// Reads and compiles the model; blocks. Throws kModelLoad.
std::unique_ptr<Device> MakeOpenVinoDevice(const OpenVinoOptions& options);

}  // namespace reprise

#endif  // REPRISE_DEVICE_OPENVINO_H_
