// orval's client of fetch has its base address from here alone.
export default {
  lobewise: {
    input: "../build/openapi.json",
    output: {
      target: "../build/orval/api.ts",
      client: "fetch",
      headers: true,
      baseUrl: { runtime: "process.env.LOBEWISE_ADDRESS" },
    },
  },
};
