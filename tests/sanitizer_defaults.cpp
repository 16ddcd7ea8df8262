// What every sanitized test wants of its sanitizer, so that a test run by hand behaves as one run by ctest.
extern "C" {

const char* __asan_default_options();
const char* __lsan_default_suppressions();
const char* __tsan_default_options();
const char* __ubsan_default_options();

// Tests start threads by the thousand: the stack that each gets for use after return takes half of the time of those over
// ranks, unless it is small.
const char* __asan_default_options() {
  return "detect_stack_use_after_return=1:max_uar_stack_size_log=16:strict_string_checks=1";
}

// The OpenMP runtime keeps its threads' records until the process ends.
const char* __lsan_default_suppressions() { return "leak:libomp.so"; }

// The OpenMP runtime is not instrumented; its Archer tool tells ThreadSanitizer of the synchronisation instead.
const char* __tsan_default_options() { return "ignore_noninstrumented_modules=1:halt_on_error=1"; }

const char* __ubsan_default_options() { return "print_stacktrace=1"; }
}
