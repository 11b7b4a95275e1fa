// A real OpenID Connect issuer: node issuer.mjs PORT ALGORITHM KID. A restart with another KID is a new key.
import { generateKeyPairSync } from "node:crypto";
import { Provider } from "oidc-provider";

const [port, alg, kid] = process.argv.slice(2);
const kinds = {
  RS256: ["rsa", { modulusLength: 2048 }],
  PS256: ["rsa", { modulusLength: 2048 }],
  ES256: ["ec", { namedCurve: "P-256" }],
  EdDSA: ["ed25519", {}],
};
const jwk = (name) => generateKeyPairSync(...kinds[name]).privateKey.export({ format: "jwk" });
const signing = { ...jwk(alg), kid, use: "sig", alg: alg === "EdDSA" ? undefined : alg };
// A key of another kind beside it, as issuers have.
const keys = [signing, { ...jwk(alg === "ES256" ? "RS256" : "ES256"), kid: `${kid}-other`, use: "sig" }];

const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: ["reader", "stranger"].map((client_id) => ({
    client_id,
    client_secret: "of-the-tests",
    grant_types: ["client_credentials"],
    redirect_uris: [],
    response_types: [],
    id_token_signed_response_alg: alg,
  })),
  scopes: ["read", "submit", "admin"],
  jwks: { keys },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: (_context, resource) => ({
        scope: "read submit admin",
        audience: new URL(resource).hostname,
        accessTokenTTL: 300,
        accessTokenFormat: "jwt",
        jwt: { sign: { alg } },
      }),
    },
  },
});
provider.listen(Number(port), "127.0.0.1", () => console.log("listening"));
