// Plain values for tensors: what a device declares, what a caller lends, what a caller gets.
#ifndef REPRISE_TENSOR_H_
#define REPRISE_TENSOR_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace reprise {

enum class DType : std::uint8_t { kF32, kF16, kF64, kI8, kU8, kI16, kI32, kI64, kBool };

std::size_t SizeOf(DType dtype);
std::string_view NameOf(DType dtype);  // numpy's name: "float32", "bool"

using Shape = std::vector<std::int64_t>;

inline constexpr std::int64_t kDynamic = -1;  // a dimension of a TensorSpec that a request chooses

std::int64_t ElementCount(const Shape& shape);
std::string ToString(const Shape& shape);  // "[?, 3, 224, 224]"

// What a device takes or gives.
struct TensorSpec {
  std::string name;
  DType dtype;
  Shape dims;
};

// Borrowed, C-contiguous memory, aligned to its element.
struct TensorView {
  DType dtype;
  Shape shape;
  const std::byte* bytes;

  std::size_t size_bytes() const {
    return static_cast<std::size_t>(ElementCount(shape)) * SizeOf(dtype);
  }
};

struct NamedTensorView {
  std::string_view name;
  TensorView tensor;
};

// Owned memory.
struct Tensor {
  DType dtype;
  Shape shape;
  std::unique_ptr<std::byte[]> bytes;
};

}  // namespace reprise

#endif  // REPRISE_TENSOR_H_
