// The few lines of test harness that these tests need.
#ifndef REPRISE_TESTS_CHECK_H_
#define REPRISE_TESTS_CHECK_H_

#include <cstdio>
#include <cstdlib>

#define CHECK(condition)                                                           \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                \
    }                                                                              \
  } while (false)

#define RUN(test)                       \
  do {                                  \
    test();                             \
    std::printf("passed: %s\n", #test); \
  } while (false)

#endif  // REPRISE_TESTS_CHECK_H_
