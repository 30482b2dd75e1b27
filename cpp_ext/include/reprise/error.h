// The one error type of the native core; bindings.cc maps each code to a Python exception.
#ifndef REPRISE_ERROR_H_
#define REPRISE_ERROR_H_

#include <stdexcept>
#include <string>

namespace reprise {

enum class ErrorCode {
  kInvalidInput,      // the caller's request or options are wrong; the message names the field
  kQueueFull,         // the bounded queue has no place; try again later or elsewhere
  kDeadlineExceeded,  // the request was still queued when its deadline passed
  kCancelled,         // the request was still queued when its caller cancelled it
  kShutdown,          // the executor was closed before the request could run
  kModelLoad,         // the device cannot load this model
  kDevice,            // the device failed while it ran a batch
};

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace reprise

#endif  // REPRISE_ERROR_H_
