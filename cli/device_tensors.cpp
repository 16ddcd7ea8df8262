#include "cli/device_tensors.h"

namespace tessera::cli {

DeviceTensors::DeviceTensors(const ProblemTensors& host, int device) : device_(device) {
  for (const HostTensor* tensor :
       {&host.q, &host.k, &host.v, &host.dout, &host.dlse, &host.bias, &host.alibi_slopes, &host.sinks, &host.out,
        &host.lse, &host.key_lengths, &host.page_table, &host.dq, &host.dk, &host.dv, &host.dbias, &host.dsinks}) {
    add(*tensor);
  }
}

void DeviceTensors::add(const HostTensor& host) {
  if (host.absent()) {
    return;
  }
  Copy copy{&host, {}};
  if (!host.memory().empty()) {
    copy.memory = internal::DeviceMemory(device_, host.memory().size());
    copy.memory.copy_from(host.memory().data(), host.memory().size());
  }
  copies_.insert_or_assign(host.view().data, std::move(copy));
}

template <class View>
void DeviceTensors::move(View& view) const {
  if (view.absent()) {
    return;
  }
  const Copy& copy = copies_.at(view.data);
  const std::ptrdiff_t start = static_cast<const std::byte*>(view.data) - copy.host->memory().data();
  view.data = copy.memory.bytes() == 0 ? nullptr : static_cast<std::byte*>(copy.memory.data()) + start;
  view.device = {DeviceKind::cuda, device_};
}

void DeviceTensors::move(ScoreTensors& score) const {
  move(score.bias);
  move(score.alibi_slopes);
  move(score.sinks);
}

ForwardTensors DeviceTensors::moved(ForwardTensors tensors) const {
  for (ConstTensorView* view : {&tensors.q, &tensors.k, &tensors.v, &tensors.key_lengths, &tensors.page_table}) {
    move(*view);
  }
  move(tensors.out);
  move(tensors.lse);
  move(tensors.score);
  return tensors;
}

BackwardTensors DeviceTensors::moved(BackwardTensors tensors) const {
  for (ConstTensorView* view :
       {&tensors.q, &tensors.k, &tensors.v, &tensors.out, &tensors.lse, &tensors.dout, &tensors.dlse}) {
    move(*view);
  }
  for (TensorView* view : {&tensors.dq, &tensors.dk, &tensors.dv, &tensors.dbias, &tensors.dsinks}) {
    move(*view);
  }
  move(tensors.score);
  return tensors;
}

void DeviceTensors::upload() {
  for (auto& [address, copy] : copies_) {
    if (copy.memory.bytes() > 0) {
      copy.memory.copy_from(copy.host->memory().data(), copy.memory.bytes());
    }
  }
}

void DeviceTensors::download(const HostTensor& host) const {
  const Copy& copy = copies_.at(host.view().data);
  if (copy.memory.bytes() > 0) {
    copy.memory.copy_to(host.memory().data(), copy.memory.bytes());
  }
}

void DeviceTensors::download(const ProblemTensors& host, Pass pass) const {
  host.for_each_output(pass, [&](const std::string&, const HostTensor& tensor) { download(tensor); });
}

}  // namespace tessera::cli
