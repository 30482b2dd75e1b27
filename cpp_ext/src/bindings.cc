// The only file that knows Python. The GIL is held in submit, cancel, stats and drain, which never
// block, and released while a model loads and while an executor closes.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <exception>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "reprise/device_openvino.h"
#include "reprise/executor.h"

namespace py = pybind11;

namespace reprise {
namespace {

constexpr std::size_t kErrorCodeCount = 7;
// Owned by the module, which is never unloaded.
std::array<PyObject*, kErrorCodeCount> exception_types{};

PyObject* TypeOf(ErrorCode code) { return exception_types[static_cast<std::size_t>(code)]; }

py::object ToException(const Error& error) {
  return py::reinterpret_borrow<py::object>(TypeOf(error.code()))(error.what());
}

DType FromNumpy(const py::array& array, const std::string& name) {
  const py::dtype dtype = array.dtype();
  const py::ssize_t size = dtype.itemsize();
  const bool is_native = dtype.byteorder() == '=' || dtype.byteorder() == '|';
  if (is_native) {
    switch (dtype.kind()) {
      case 'f':
        if (size == 2) return DType::kF16;
        if (size == 4) return DType::kF32;
        if (size == 8) return DType::kF64;
        break;
      case 'i':
        if (size == 1) return DType::kI8;
        if (size == 2) return DType::kI16;
        if (size == 4) return DType::kI32;
        if (size == 8) return DType::kI64;
        break;
      case 'u':
        if (size == 1) return DType::kU8;
        break;
      case 'b':
        return DType::kBool;
    }
  }
  throw Error(ErrorCode::kInvalidInput, "input '" + name + "' has dtype " +
                                            py::str(dtype).cast<std::string>() +
                                            ", which no engine takes");
}

py::array ToNumpy(Tensor tensor) {
  const py::capsule owner(tensor.bytes.get(), [](void* memory) {
    std::unique_ptr<std::byte[]>(static_cast<std::byte*>(memory)).reset();
  });
  std::byte* bytes = tensor.bytes.release();  // the capsule owns it from here
  return py::array(py::dtype(std::string(NameOf(tensor.dtype))), tensor.shape, bytes, owner);
}

// The arrays a request borrows from. Whoever lets go of them last may hold no GIL.
class LentArrays {
 public:
  explicit LentArrays(std::vector<py::array> arrays) : arrays_(std::move(arrays)) {}
  ~LentArrays() {
    const py::gil_scoped_acquire gil;
    arrays_.clear();
  }
  LentArrays(const LentArrays&) = delete;
  LentArrays& operator=(const LentArrays&) = delete;

 private:
  std::vector<py::array> arrays_;
};

struct PyCompletion {
  RequestId request_id;
  py::object outputs;  // dict of arrays, or None
  py::object error;    // exception, or None
};

class PyExecutor {
 public:
  PyExecutor(const OpenVinoOptions& device_options, const ExecutorOptions& options)
      : executor_(std::make_unique<Executor>(MakeOpenVinoDevice(device_options), options)) {}

  ~PyExecutor() {
    const py::gil_scoped_release release;
    executor_.reset();
  }

  RequestId Submit(const py::dict& inputs, std::optional<double> deadline_s) {
    Request request;
    std::vector<std::string> names;
    std::vector<py::array> arrays;
    names.reserve(inputs.size());  // the request's names point into it
    for (const auto& [key, value] : inputs) {
      names.push_back(py::cast<std::string>(key));
      arrays.push_back(Contiguous(value, names.back()));
      const py::array& array = arrays.back();
      request.inputs.push_back(
          {names.back(),
           {FromNumpy(array, names.back()), Shape(array.shape(), array.shape() + array.ndim()),
            static_cast<const std::byte*>(array.data())}});
    }
    if (deadline_s) request.deadline = Duration(*deadline_s);
    request.keep_alive = std::make_shared<LentArrays>(std::move(arrays));
    return executor_->Submit(std::move(request));
  }

  std::vector<PyCompletion> Drain() {
    std::vector<PyCompletion> drained;
    for (Completion& completion : executor_->Drain()) {
      drained.push_back({completion.id, py::none(), py::none()});
      if (completion.error) {
        drained.back().error = ToException(*completion.error);
      } else {
        drained.back().outputs = ToDict(std::move(completion.outputs));
      }
    }
    return drained;
  }

  void Close() {
    const py::gil_scoped_release release;
    executor_->Close();
  }

  Executor& executor() { return *executor_; }

 private:
  static py::array Contiguous(py::handle value, const std::string& name) {
    if (!py::isinstance<py::array>(value)) {
      throw Error(ErrorCode::kInvalidInput, "input '" + name + "' must be a numpy array, got " +
                                                std::string(Py_TYPE(value.ptr())->tp_name));
    }
    // Copies only what is not contiguous or not aligned already.
    py::array array =
        py::array::ensure(value, py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_);
    if (!array) {
      throw Error(
          ErrorCode::kInvalidInput,
          "input '" + name + "' cannot be copied to contiguous memory: send a C-contiguous array");
    }
    return array;
  }

  static std::chrono::nanoseconds Duration(double seconds) {
    constexpr double kLongest = 86400.0 * 365;
    if (!(seconds >= 0)) {
      throw Error(ErrorCode::kInvalidInput, "deadline_s must be 0 or more seconds");
    }
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
        std::chrono::duration<double>(std::min(seconds, kLongest)));
  }

  py::dict ToDict(std::vector<Tensor> outputs) const {
    py::dict result;
    const std::vector<TensorSpec>& specs = executor_->device().outputs();
    for (std::size_t i = 0; i < specs.size(); ++i) {
      result[py::str(specs[i].name)] = ToNumpy(std::move(outputs[i]));
    }
    return result;
  }

  std::unique_ptr<Executor> executor_;
};

PyObject* MakeException(py::module_& module, const char* name, const py::object& bases,
                        const char* doc) {
  const std::string qualified = "reprise_executor._executor." + std::string(name);
  PyObject* type = PyErr_NewExceptionWithDoc(qualified.c_str(), doc, bases.ptr(), nullptr);
  if (type == nullptr) throw py::error_already_set();
  module.add_object(name, py::reinterpret_borrow<py::object>(type));
  return type;
}

void BindErrors(py::module_& module) {
  const auto exception = py::reinterpret_borrow<py::object>(PyExc_Exception);
  const auto value_error = py::reinterpret_borrow<py::object>(PyExc_ValueError);
  const auto base = py::reinterpret_borrow<py::object>(
      MakeException(module, "ExecutorError", exception, "Base of everything the executor raises."));
  const auto bind = [&](ErrorCode code, const char* name, const py::object& bases,
                        const char* doc) {
    exception_types[static_cast<std::size_t>(code)] = MakeException(module, name, bases, doc);
  };
  bind(ErrorCode::kInvalidInput, "InvalidInputError", py::make_tuple(base, value_error),
       "The request or an option is wrong; the message names it.");
  bind(ErrorCode::kQueueFull, "QueueFullError", base, "The bounded queue has no place.");
  bind(ErrorCode::kDeadlineExceeded, "DeadlineExceededError", base,
       "The deadline passed while the request was queued.");
  bind(ErrorCode::kCancelled, "RequestCancelledError", base,
       "The request was cancelled while it was queued.");
  bind(ErrorCode::kShutdown, "ShutdownError", base, "The executor was closed.");
  bind(ErrorCode::kModelLoad, "ModelLoadError", base, "The device cannot load the model.");
  bind(ErrorCode::kDevice, "DeviceError", base, "The device failed while it ran a batch.");
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const Error& error) {
      PyErr_SetString(TypeOf(error.code()), error.what());
    }
  });
}

void BindValues(py::module_& module) {
  py::class_<TensorSpec>(
      module, "TensorSpec",
      "A tensor of the engine: numpy's name of its dtype; -1 in dims is a dynamic dimension.")
      .def_readonly("name", &TensorSpec::name)
      .def_property_readonly("dtype",
                             [](const TensorSpec& spec) { return std::string(NameOf(spec.dtype)); })
      .def_readonly("dims", &TensorSpec::dims);
  py::class_<PyCompletion>(
      module, "Completion",
      "A finished request: outputs, new C-contiguous arrays by output name, or an error.")
      .def_readonly("request_id", &PyCompletion::request_id)
      .def_property_readonly("outputs",
                             [](const PyCompletion& completion)
                                 -> py::typing::Optional<py::typing::Dict<py::str, py::array>> {
                               return completion.outputs;
                             })
      .def_property_readonly(
          "error", [](const PyCompletion& completion) -> py::object { return completion.error; });
  py::class_<ExecutorStats>(
      module, "ExecutorStats",
      "Counters of one executor: batch_count counts engine calls, item_count and "
      "largest_batch_size rows, the others requests.")
      .def(py::init<>())
      .def_readwrite("queued_count", &ExecutorStats::queued_count)
      .def_readwrite("running_count", &ExecutorStats::running_count)
      .def_readwrite("lane_count", &ExecutorStats::lane_count)
      .def_readwrite("completed_count", &ExecutorStats::completed_count)
      .def_readwrite("failed_count", &ExecutorStats::failed_count)
      .def_readwrite("cancelled_count", &ExecutorStats::cancelled_count)
      .def_readwrite("expired_count", &ExecutorStats::expired_count)
      .def_readwrite("rejected_count", &ExecutorStats::rejected_count)
      .def_readwrite("batch_count", &ExecutorStats::batch_count)
      .def_readwrite("item_count", &ExecutorStats::item_count)
      .def_readwrite("largest_batch_size", &ExecutorStats::largest_batch_size)
      .def_readwrite("wakeup_count", &ExecutorStats::wakeup_count)
      .def_property_readonly("mean_batch_size", [](const ExecutorStats& stats) {
        return stats.batch_count == 0
                   ? 0.0
                   : static_cast<double>(stats.item_count) / static_cast<double>(stats.batch_count);
      });
}

std::unique_ptr<PyExecutor> OpenOpenVino(std::string model_path,
                                         std::vector<std::string> input_names,
                                         std::vector<std::string> output_names,
                                         std::map<std::string, std::string> properties,
                                         std::int64_t max_batch_size,
                                         std::int64_t max_queue_delay_us, std::size_t queue_limit,
                                         std::size_t lane_count) {
  const py::gil_scoped_release release;
  return std::make_unique<PyExecutor>(
      OpenVinoOptions{std::move(model_path), std::move(input_names), std::move(output_names),
                      std::move(properties), lane_count},
      ExecutorOptions{max_batch_size, std::chrono::microseconds(max_queue_delay_us), queue_limit});
}

constexpr const char* kOpenDoc =
    R"(Read and compile a model on the CPU; blocks, without the GIL.

Args:
    model_path: ONNX file or OpenVINO IR.
    input_names: Every input; their order is that of `inputs`.
    output_names: What requests get; their order is that of `outputs`.
    properties: OpenVINO properties by name.
    max_batch_size: Rows that one engine call may hold; 1 turns merging off.
    max_queue_delay_us: How long a batch that could still grow waits, in microseconds.
    queue_limit: Requests that may wait.
    lane_count: Batches in flight; 0 takes what OpenVINO calls optimal.

Raises:
    ModelLoadError: OpenVINO cannot read or compile the model.
    InvalidInputError: An option cannot work with this model.)";

constexpr const char* kSubmitDoc =
    R"(Queue a request and return its id; never blocks.

Args:
    inputs: Arrays by input name, in the dtypes and dims of `inputs`. With max_batch_size above 1
        the first dimension is 1 to max_batch_size, the same for all. C-contiguous arrays are lent,
        not copied: they must not change until the request completes.
    deadline_s: Seconds from now by which the request must have started.

Raises:
    InvalidInputError: A name, dtype or shape does not fit; nothing was queued.
    QueueFullError: As many requests wait as may wait.
    ShutdownError: The executor was closed.)";

void BindExecutor(py::module_& module) {
  py::class_<PyExecutor>(
      module, "Executor",
      "Queue, batcher and lanes of one engine. Any thread may call it; one alone may drain.")
      .def_static("open_openvino", &OpenOpenVino, py::arg("model_path"), py::kw_only(),
                  py::arg("input_names"), py::arg("output_names"), py::arg("properties"),
                  py::arg("max_batch_size"), py::arg("max_queue_delay_us"), py::arg("queue_limit"),
                  py::arg("lane_count"), kOpenDoc)
      .def("submit", &PyExecutor::Submit, py::arg("inputs"), py::arg("deadline_s") = py::none(),
           kSubmitDoc)
      .def(
          "cancel", [](PyExecutor& self, RequestId id) { return self.executor().Cancel(id); },
          py::arg("request_id"),
          "True if the request was still queued: it completes with RequestCancelledError.")
      .def("drain", &PyExecutor::Drain,
           "Everything that completed since the last call; never blocks.")
      .def("close", &PyExecutor::Close,
           "Fail what is queued, wait for what runs, join. Idempotent.")
      .def(
          "fileno", [](PyExecutor& self) { return self.executor().completion_fd(); },
          "Readable when there is something to drain.")
      .def(
          "stats", [](PyExecutor& self) { return self.executor().stats(); },
          "A copy of the counters as of now.")
      .def_property_readonly(
          "inputs", [](PyExecutor& self) { return self.executor().device().inputs(); },
          "What a request must hold, in the order of input_names.")
      .def_property_readonly(
          "outputs", [](PyExecutor& self) { return self.executor().device().outputs(); },
          "What a completion holds, in the order of output_names.");
}

}  // namespace
}  // namespace reprise

PYBIND11_MODULE(_executor, module) {
  module.doc() = "Reprise's native executor.";
  reprise::BindErrors(module);
  reprise::BindValues(module);
  reprise::BindExecutor(module);
}
