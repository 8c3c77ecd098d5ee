// Kernels of ARM for a process that is not of ARM: the two ends of a pipe (emulated_arm.py).
//
// Compiled for ARM this is a program around int_lm/native/kernels.cc that runs under QEMU: it calls a
// kernel as XLA does, with operands that come through the pipe. Compiled for this machine it is a library
// that stands for the kernels: what XLA calls sends the operands to that program, and waits for results.

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>
#include <vector>

#ifdef __aarch64__
#include "kernels.cc"
#else
#include "xla/ffi/api/ffi.h"
#endif

namespace {

#ifdef __aarch64__
constexpr int ENDED = 0;  // nobody asks any more
#else
constexpr int ENDED = 1;
#endif

struct Pipe {
  int in, out;
  void send(const void* data, size_t size) {
    for (auto* from = static_cast<const char*>(data); size;) {
      const ssize_t done = write(out, from, size);
      if (done <= 0) std::abort();
      from += done, size -= size_t(done);
    }
  }
  void receive(void* data, size_t size) {
    for (auto* to = static_cast<char*>(data); size;) {
      const ssize_t done = read(in, to, size);
      if (done <= 0) {  // the other one has ended
        if (ENDED) std::fputs("emulated_arm: the emulator has ended\n", stderr);
        std::_Exit(ENDED);
      }
      to += done, size -= size_t(done);
    }
  }
  void number(int64_t value) { send(&value, sizeof value); }
  int64_t number() {
    int64_t value;
    receive(&value, sizeof value);
    return value;
  }
  void numbers(const int64_t* values, int64_t count) {
    number(count);
    send(values, size_t(count) * 8);
  }
  std::vector<int64_t> numbers() {
    std::vector<int64_t> values(static_cast<size_t>(number()));
    receive(values.data(), values.size() * 8);
    return values;
  }
  void text(const std::string& value) {
    number(int64_t(value.size()));
    send(value.data(), value.size());
  }
  std::string text() {
    std::string value(static_cast<size_t>(number()), ' ');
    receive(&value[0], value.size());
    return value;
  }
};

// Of a buffer.
size_t bytes_of(XLA_FFI_DataType type, const int64_t* sizes, int64_t rank) {
  size_t bytes = size_t(xla::ffi::ByteWidth(static_cast<xla::ffi::DataType>(type)));
  for (int64_t k = 0; k < rank; ++k) bytes *= size_t(sizes[k]);
  return bytes;
}

enum Request { CALL, USE, ADD_TILE, INSTRUCTIONS };

}  // namespace

#ifdef __aarch64__

struct XLA_FFI_Error {
  std::string message;
  int64_t code;
};

namespace {

constexpr size_t MARGIN = 64;  // bytes after a buffer that no kernel may change
constexpr char MARK = 0x5A;

XLA_FFI_Error* create(XLA_FFI_Error_Create_Args* args) {
  return new XLA_FFI_Error{args->message, args->errc};
}
XLA_FFI_Error* threads(XLA_FFI_ThreadPool_NumThreads_Args* args) {
  *args->num_threads = 2;
  return nullptr;
}
XLA_FFI_Error* schedule(XLA_FFI_ThreadPool_Schedule_Args* args) {
  std::thread(args->task, args->data).detach();
  return nullptr;
}

struct Operand {
  std::vector<int64_t> sizes;
  size_t bytes;
  std::unique_ptr<Buffer<char>> data;
  XLA_FFI_Buffer buffer{};
};

Operand operand(Pipe& pipe) {
  const auto type = XLA_FFI_DataType(pipe.number());
  Operand found{pipe.numbers()};
  found.bytes = bytes_of(type, found.sizes.data(), int64_t(found.sizes.size()));
  found.data = std::make_unique<Buffer<char>>(int64_t(found.bytes + MARGIN));
  std::memset(found.data->data() + found.bytes, MARK, MARGIN);
  found.buffer = {XLA_FFI_Buffer_STRUCT_SIZE, nullptr, type, found.data->data(),
                  int64_t(found.sizes.size()), found.sizes.data()};
  return found;
}

void call(Pipe& pipe) {
  const std::string name = pipe.text();
  std::vector<Operand> operands(static_cast<size_t>(pipe.number()));
  for (Operand& found : operands) {
    found = operand(pipe);
    pipe.receive(found.data->data(), found.bytes);
  }
  std::vector<Operand> results(static_cast<size_t>(pipe.number()));
  for (Operand& found : results) {
    found = operand(pipe);
    const int64_t same = pipe.number();  // as which operand, in place
    if (same >= 0) found.buffer.data = operands[size_t(same)].buffer.data;
  }
  const size_t count = size_t(pipe.number());
  std::vector<std::string> names(count);
  std::vector<std::vector<int64_t>> values(count);
  std::vector<XLA_FFI_ByteSpan> spans(count);
  std::vector<XLA_FFI_Scalar> scalars(count);
  std::vector<XLA_FFI_Array> arrays(count);
  std::vector<XLA_FFI_AttrType> kinds(count);
  std::vector<XLA_FFI_ByteSpan*> keys;
  std::vector<void*> attributes, pointers, outputs;
  for (size_t k = 0; k < count; ++k) {
    names[k] = pipe.text();
    kinds[k] = XLA_FFI_AttrType(pipe.number());
    values[k] = pipe.numbers();
    spans[k] = {names[k].data(), names[k].size()};
    scalars[k] = {XLA_FFI_DataType_S64, values[k].data()};
    arrays[k] = {XLA_FFI_DataType_S64, values[k].size(), values[k].data()};
    keys.push_back(&spans[k]);
    attributes.push_back(kinds[k] == XLA_FFI_AttrType_SCALAR ? static_cast<void*>(&scalars[k]) : &arrays[k]);
  }
  for (Operand& found : operands) pointers.push_back(&found.buffer);
  for (Operand& found : results) outputs.push_back(&found.buffer);
  std::vector<XLA_FFI_ArgType> of_operands(operands.size(), XLA_FFI_ArgType_BUFFER);
  std::vector<XLA_FFI_RetType> of_results(results.size(), XLA_FFI_RetType_BUFFER);

  XLA_FFI_Api api{};
  api.struct_size = XLA_FFI_Api_STRUCT_SIZE;
  api.XLA_FFI_Error_Create = create;
  api.XLA_FFI_ThreadPool_NumThreads = threads;
  api.XLA_FFI_ThreadPool_Schedule = schedule;
  XLA_FFI_CallFrame frame{};
  frame.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE;
  frame.api = &api;
  frame.stage = XLA_FFI_ExecutionStage_EXECUTE;
  frame.args = {XLA_FFI_Args_STRUCT_SIZE, nullptr, int64_t(operands.size()), of_operands.data(), pointers.data()};
  frame.rets = {XLA_FFI_Rets_STRUCT_SIZE, nullptr, int64_t(results.size()), of_results.data(), outputs.data()};
  frame.attrs = {XLA_FFI_Attrs_STRUCT_SIZE, nullptr, int64_t(count), kinds.data(), keys.data(), attributes.data()};
  auto* handler = reinterpret_cast<XLA_FFI_Handler*>(dlsym(RTLD_DEFAULT, name.c_str()));
  XLA_FFI_Error none{"there is no kernel of this name", XLA_FFI_Error_Code_NOT_FOUND};
  const XLA_FFI_Error* error = handler ? handler(&frame) : &none;
  XLA_FFI_Error past{"it wrote past the end of a buffer", XLA_FFI_Error_Code_INTERNAL};
  for (const auto* all : {&operands, &results})
    for (const Operand& found : *all)
      for (size_t k = 0; k < MARGIN; ++k)
        if (found.data->data()[found.bytes + k] != MARK) error = &past;
  pipe.number(error ? error->code : 0);
  if (error) return pipe.text(error->message);
  for (const Operand& found : results) pipe.send(found.buffer.data, found.bytes);
}

}  // namespace

int main() {
  for (Pipe pipe{0, 1};;) switch (pipe.number()) {
      case CALL: call(pipe); break;
      case USE: int_lm_use(pipe.text().c_str()); break;
      case INSTRUCTIONS:
        pipe.text(int_lm_kernels());
        pipe.text(int_lm_instructions());
        break;
      case ADD_TILE: {
        const int64_t number = pipe.number();
        const char* error = int_lm_add_tile(number, pipe.text().c_str());
        pipe.text(error ? error : "");
      }
    }
}

#else

namespace {

std::mutex mutex;
Pipe pipe_{-1, -1};
std::string names, instructions, error_of_tile;

XLA_FFI_Error* relay(const char* name, XLA_FFI_CallFrame* frame) {
  if (frame->extension_start && frame->extension_start->type == XLA_FFI_Extension_Metadata) {
    auto* metadata = reinterpret_cast<XLA_FFI_Metadata_Extension*>(frame->extension_start)->metadata;
    metadata->api_version = {XLA_FFI_Api_Version_STRUCT_SIZE, nullptr, XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR};
    metadata->traits = 0;
    return nullptr;
  }
  const std::lock_guard<std::mutex> lock(mutex);
  const auto operand = [](void* of) {
    const auto* buffer = static_cast<XLA_FFI_Buffer*>(of);
    pipe_.number(buffer->dtype);
    pipe_.numbers(buffer->dims, buffer->rank);
    return buffer;
  };
  pipe_.number(CALL);
  pipe_.text(name);
  pipe_.number(frame->args.size);
  for (int64_t k = 0; k < frame->args.size; ++k) {
    const auto* buffer = operand(frame->args.args[k]);
    pipe_.send(buffer->data, bytes_of(buffer->dtype, buffer->dims, buffer->rank));
  }
  pipe_.number(frame->rets.size);
  for (int64_t k = 0; k < frame->rets.size; ++k) {
    const auto* buffer = operand(frame->rets.rets[k]);
    int64_t same = -1;
    for (int64_t j = 0; j < frame->args.size; ++j)
      if (static_cast<XLA_FFI_Buffer*>(frame->args.args[j])->data == buffer->data) same = j;
    pipe_.number(same);
  }
  pipe_.number(frame->attrs.size);
  for (int64_t k = 0; k < frame->attrs.size; ++k) {
    pipe_.text({frame->attrs.names[k]->ptr, frame->attrs.names[k]->len});
    pipe_.number(frame->attrs.types[k]);
    if (frame->attrs.types[k] == XLA_FFI_AttrType_SCALAR) {
      pipe_.numbers(static_cast<int64_t*>(static_cast<XLA_FFI_Scalar*>(frame->attrs.attrs[k])->value), 1);
    } else {
      const auto* array = static_cast<XLA_FFI_Array*>(frame->attrs.attrs[k]);
      pipe_.numbers(static_cast<int64_t*>(array->data), int64_t(array->size));
    }
  }
  if (const int64_t code = pipe_.number()) {
    const std::string message = pipe_.text();
    XLA_FFI_Error_Create_Args args{XLA_FFI_Error_Create_Args_STRUCT_SIZE, nullptr, message.c_str(),
                                   XLA_FFI_Error_Code(code)};
    return frame->api->XLA_FFI_Error_Create(&args);
  }
  for (int64_t k = 0; k < frame->rets.size; ++k) {
    const auto* buffer = static_cast<XLA_FFI_Buffer*>(frame->rets.rets[k]);
    pipe_.receive(buffer->data, bytes_of(buffer->dtype, buffer->dims, buffer->rank));
  }
  return nullptr;
}

}  // namespace

#define RELAY(name) \
  extern "C" XLA_FFI_Error* name(XLA_FFI_CallFrame* frame) { return relay(#name, frame); }
EVERY_KERNEL  // RELAY(...) of each
extern "C" void connect_pipe(int in, int out) {
  pipe_ = {in, out};
  pipe_.number(INSTRUCTIONS);
  names = pipe_.text();
  instructions = pipe_.text();
}
extern "C" const char* int_lm_kernels() { return names.c_str(); }
extern "C" const char* int_lm_instructions() { return instructions.c_str(); }
extern "C" void int_lm_use(const char* name) {
  const std::lock_guard<std::mutex> lock(mutex);
  pipe_.number(USE);
  pipe_.text(name);
}
extern "C" const char* int_lm_add_tile(int64_t number, const char* path) {
  const std::lock_guard<std::mutex> lock(mutex);
  pipe_.number(ADD_TILE);
  pipe_.number(number);
  pipe_.text(path);
  error_of_tile = pipe_.text();
  return error_of_tile.empty() ? nullptr : error_of_tile.c_str();
}

#endif
