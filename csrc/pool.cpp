#include "pool.hpp"

#include <algorithm>
#include <exception>
#include <mutex>
#include <new>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#include <pthread.h>
#endif

namespace diml {

namespace {

Pool* current = nullptr;
std::mutex current_mutex;
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

#if defined(__unix__) || defined(__APPLE__)
bool forked = false;

// The child of a fork has one thread: it must not use the parent's pool, nor a lock that was held at that moment.
void forget_after_fork() {
  current = nullptr, forked = true;
  new (&current_mutex) std::mutex;
}

const int registered = pthread_atfork(nullptr, nullptr, forget_after_fork);

// The parallel region of torch's OpenMP library, if it is GNU's or has its names. Its threads spin for some
// milliseconds after torch's work, so that additional threads would share their cores. Not after a fork, which GNU's
// does not survive.
Parallel torch_parallel() {
  static const auto found = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return forked ? nullptr : found;
}
#else
Parallel torch_parallel() { return nullptr; }
#endif

}  // namespace

Pool& Pool::instance() {
  const std::lock_guard<std::mutex> lock(current_mutex);
  if (!current) current = new Pool;  // lives as long as the process
  return *current;
}

Pool::~Pool() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    closing_ = true;
  }
  begin_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Pool::grow(int helpers) {
  while (static_cast<int>(threads_.size()) < helpers) {
    const int worker = static_cast<int>(threads_.size()) + 1;
    threads_.emplace_back([this, worker] { wait_for_work(worker); });
  }
}

void Pool::wait_for_work(int worker) {
  uint64_t seen = 0;
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    begin_.wait(lock, [&] { return closing_ || (task_ != seen && work_); });
    if (closing_) return;
    seen = task_;
    if (worker > wanted_) continue;
    ++busy_;
    lock.unlock();
    take_pieces(worker);
    lock.lock();
    if (--busy_ == 0) end_.notify_all();
  }
}

void Pool::take_pieces(int worker) {
  try {
    while (!halt_.load(std::memory_order_relaxed)) {
      const int64_t piece = next_.fetch_add(1);
      if (piece >= pieces_) return;
      (*work_)(piece, worker);
      if (worker == 0 && (*stop_)()) halt_ = true;
    }
  } catch (...) {
    halt_ = true;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!failure_) failure_ = std::current_exception();
  }
}

void Pool::run(int64_t pieces, int threads, const std::function<void(int64_t, int)>& work,
               const std::function<bool()>& stop) {
  const std::lock_guard<std::mutex> turn(turn_);
  const int helpers = static_cast<int>(std::min<int64_t>(threads, pieces)) - 1;
  const Parallel parallel = helpers > 0 ? torch_parallel() : nullptr;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!parallel) grow(helpers);
    work_ = &work, stop_ = &stop;
    pieces_ = pieces;
    next_ = 0;
    halt_ = false;
    failure_ = nullptr;
    wanted_ = parallel ? 0 : helpers;
    ++task_;
  }
  if (parallel) {
    caller_ = std::this_thread::get_id(), joined_ = 0;
    parallel(&Pool::join, this, static_cast<unsigned>(helpers + 1), 0);
  } else {
    if (helpers > 0) begin_.notify_all();
    take_pieces(0);
  }
  std::unique_lock<std::mutex> lock(mutex_);
  end_.wait(lock, [&] { return busy_ == 0; });
  work_ = nullptr;  // a thread that wakes only now finds nothing to do
  if (failure_) std::rethrow_exception(failure_);
}

void Pool::join(void* pool) {
  Pool& self = *static_cast<Pool*>(pool);
  self.take_pieces(std::this_thread::get_id() == self.caller_ ? 0 : ++self.joined_);
}

}  // namespace diml
