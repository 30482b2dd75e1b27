#include "reprise/device_openvino.h"

#include <openvino/openvino.hpp>
#include <optional>
#include <sstream>
#include <utility>

namespace reprise {
namespace {

ov::element::Type ToOpenVino(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return ov::element::f32;
    case DType::kF16:
      return ov::element::f16;
    case DType::kF64:
      return ov::element::f64;
    case DType::kI8:
      return ov::element::i8;
    case DType::kU8:
      return ov::element::u8;
    case DType::kI16:
      return ov::element::i16;
    case DType::kI32:
      return ov::element::i32;
    case DType::kI64:
      return ov::element::i64;
    case DType::kBool:
      return ov::element::boolean;
  }
  throw Error(ErrorCode::kModelLoad, "unknown dtype");
}

DType FromOpenVino(const ov::element::Type& type, const std::string& name) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kF64, DType::kI8, DType::kU8,
                            DType::kI16, DType::kI32, DType::kI64, DType::kBool}) {
    if (ToOpenVino(dtype) == type) return dtype;
  }
  throw Error(ErrorCode::kModelLoad, "tensor '" + name + "' has dtype " + type.get_type_name() +
                                         ", which is not supported");
}

// OpenVINO's texts run over several lines that begin with source positions; keep what was said.
std::string Shortened(const char* what) {
  std::istringstream lines(what);
  std::string kept;
  for (std::string line; std::getline(lines, line);) {
    if (line.empty() || line.starts_with("Exception from")) continue;
    kept += (kept.empty() ? "" : "; ") + line;
  }
  return "OpenVINO: " + (kept.empty() ? what : kept);
}

TensorSpec SpecOf(const ov::Output<const ov::Node>& port, const std::string& name) {
  const ov::PartialShape& partial = port.get_partial_shape();
  if (partial.rank().is_dynamic()) {
    throw Error(ErrorCode::kModelLoad, "tensor '" + name + "' has no fixed number of dimensions");
  }
  Shape dims;
  for (const ov::Dimension& dim : partial) {
    dims.push_back(dim.is_dynamic() ? kDynamic : dim.get_length());
  }
  return TensorSpec{name, FromOpenVino(port.get_element_type(), name), std::move(dims)};
}

class OpenVinoLane final : public Lane {
 public:
  OpenVinoLane(ov::InferRequest request, const std::vector<ov::Output<const ov::Node>>& inputs,
               const std::vector<ov::Output<const ov::Node>>& outputs,
               const std::vector<TensorSpec>& output_specs)
      : request_(std::move(request)),
        inputs_(inputs),
        outputs_(outputs),
        output_specs_(output_specs),
        staging_(inputs.size()) {
    request_.set_callback([this](std::exception_ptr failure) { Finish(failure); });
  }

  void Start(const std::vector<Job>& jobs, Done done) override {
    jobs_ = &jobs;
    done_ = std::move(done);
    try {
      for (std::size_t i = 0; i < inputs_.size(); ++i)
        request_.set_tensor(inputs_[i], Bind(jobs, i));
      request_.start_async();
    } catch (const ov::Exception& error) {
      throw Error(ErrorCode::kDevice, Shortened(error.what()));
    }
  }

 private:
  // A lone job's own memory, or the staging memory with the rows of all.
  ov::Tensor Bind(const std::vector<Job>& jobs, std::size_t i) {
    const TensorView& first = jobs.front().inputs[i];
    const ov::element::Type type = ToOpenVino(first.dtype);
    if (jobs.size() == 1) {
      // OpenVINO only reads its inputs, but its tensors know no const.
      auto* bytes = const_cast<std::byte*>(first.bytes);
      return ov::Tensor(type, ov::Shape(first.shape.begin(), first.shape.end()), bytes);
    }
    const Shape shape = GatheredShape(jobs, i);
    const auto size = static_cast<std::size_t>(ElementCount(shape)) * SizeOf(first.dtype);
    if (!staging_[i] || staging_[i].get_byte_size() < size) {
      staging_[i] = ov::Tensor(ov::element::u8, ov::Shape{std::max<std::size_t>(size, 64)});
    }
    auto* bytes = static_cast<std::byte*>(staging_[i].data());
    Gather(jobs, i, bytes);
    return ov::Tensor(type, ov::Shape(shape.begin(), shape.end()), bytes);
  }

  void Finish(std::exception_ptr failure) {
    BatchOutcome outcome;
    try {
      if (failure) std::rethrow_exception(failure);
      outcome.outputs = CopyOutputs();
    } catch (const Error& error) {
      outcome = BatchOutcome{{}, error};
    } catch (const std::exception& error) {
      outcome = BatchOutcome{{}, Error(ErrorCode::kDevice, Shortened(error.what()))};
    }
    // The executor may start this lane again as soon as `done` runs.
    const Done done = std::exchange(done_, nullptr);
    done(std::move(outcome));
  }

  std::vector<std::vector<Tensor>> CopyOutputs() {
    std::vector<std::vector<Tensor>> by_job(jobs_->size());
    for (std::size_t i = 0; i < outputs_.size(); ++i) {
      const ov::Tensor tensor = request_.get_tensor(outputs_[i]);
      const ov::Shape& shape = tensor.get_shape();
      const TensorView view{output_specs_[i].dtype, Shape(shape.begin(), shape.end()),
                            static_cast<const std::byte*>(tensor.data())};
      Scatter(output_specs_[i], view, *jobs_, by_job);
    }
    return by_job;
  }

  ov::InferRequest request_;
  const std::vector<ov::Output<const ov::Node>>& inputs_;
  const std::vector<ov::Output<const ov::Node>>& outputs_;
  const std::vector<TensorSpec>& output_specs_;
  std::vector<ov::Tensor> staging_;
  const std::vector<Job>* jobs_ = nullptr;  // of the running batch
  Done done_;
};

class OpenVinoDevice final : public Device {
 public:
  explicit OpenVinoDevice(const OpenVinoOptions& options) : lane_count_(options.lane_count) {
    ov::AnyMap properties(options.properties.begin(), options.properties.end());
    properties.emplace("INFERENCE_PRECISION_HINT", "f32");
    properties.emplace("ENABLE_CPU_PINNING", "NO");
    compiled_ = core_.compile_model(options.model_path, "CPU", properties);
    for (const std::string& name : options.input_names) {
      input_ports_.push_back(compiled_.input(name));
      input_specs_.push_back(SpecOf(input_ports_.back(), name));
    }
    for (const std::string& name : options.output_names) {
      output_ports_.push_back(compiled_.output(name));
      output_specs_.push_back(SpecOf(output_ports_.back(), name));
    }
    if (input_ports_.size() != compiled_.inputs().size()) {
      throw Error(ErrorCode::kModelLoad, "input_names must name every input of the model");
    }
  }

  const std::vector<TensorSpec>& inputs() const override { return input_specs_; }
  const std::vector<TensorSpec>& outputs() const override { return output_specs_; }

  std::vector<std::unique_ptr<Lane>> MakeLanes(std::int64_t /*max_batch_size*/) override {
    const std::size_t count = lane_count_ > 0
                                  ? lane_count_
                                  : compiled_.get_property(ov::optimal_number_of_infer_requests);
    std::vector<std::unique_ptr<Lane>> lanes;
    for (std::size_t i = 0; i < count; ++i) {
      lanes.push_back(std::make_unique<OpenVinoLane>(compiled_.create_infer_request(), input_ports_,
                                                     output_ports_, output_specs_));
    }
    return lanes;
  }

 private:
  const std::size_t lane_count_;
  ov::Core core_;
  ov::CompiledModel compiled_;
  std::vector<ov::Output<const ov::Node>> input_ports_;
  std::vector<ov::Output<const ov::Node>> output_ports_;
  std::vector<TensorSpec> input_specs_;
  std::vector<TensorSpec> output_specs_;
};

}  // namespace

std::unique_ptr<Device> MakeOpenVinoDevice(const OpenVinoOptions& options) {
  try {
    return std::make_unique<OpenVinoDevice>(options);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw Error(ErrorCode::kModelLoad, Shortened(error.what()));
  }
}

}  // namespace reprise
