// What every scenario shares: the client of the mesh, and one JSON value on standard output.
import Replicate from "replicate";

export const { COUNTER, ECHO, MIRROR } = process.env;
export const replicate = new Replicate({ baseUrl: process.env.BASE_URL });
export { Replicate };

// The error that a call ended with, as far as a caller can tell it from others.
export async function failure(promise) {
  try {
    await promise;
  } catch (error) {
    const body = error.response && /: (\{.*\})\.$/s.exec(error.message);
    return {
      name: error.name,
      message: error.message,
      status: error.response?.status,
      problem: body ? JSON.parse(body[1]) : null,
    };
  }
  return null;
}

export function report(value) {
  process.stdout.write(JSON.stringify(value));
}
