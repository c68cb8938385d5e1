// Which answers are being written, in whatever view.

const running = new Map(); // exchanges with the ids of their conversations

export function begun(exchange, conversation) {
  running.set(exchange, conversation.id);
}

export function ended(exchange) {
  running.delete(exchange);
}

// Whether there is one; id: in this conversation.
export function isWriting(id = null) {
  return [...running.values()].some((one) => id === null || one === id);
}

export function stopAll() {
  for (const exchange of running.keys()) exchange.stop();
}
